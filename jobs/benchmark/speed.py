"""Time steps of the baseline and the engine for `jobs.benchmark`, and check that fast variants are also correct."""

import contextlib
import dataclasses
import itertools
import platform
import resource
import time
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

import pez
from pez import cost
from pez.methods.pez import Walk
from pez.methods.phase import started
from pez.methods.published import learn_as_published
from pez.models.clip import Clip
from pez.objectives.clip import ClipObjective
from pez.tasks import Task


@dataclasses.dataclass(frozen=True)
class Speed:
    """The measured speed of one variant."""

    name: str
    seconds_per_image_step: float
    flop_per_image_step: float
    peak_flops: float
    """measured rate of a large matrix product in the same precision"""
    peak_bytes: int

    @property
    def share(self) -> float:
        return self.flop_per_image_step / self.seconds_per_image_step / self.peak_flops


def time_baseline(clip: Clip, target: torch.Tensor, settings: pez.PezSettings, seconds: float) -> Speed:
    """Time steps of the published algorithm: the median of as many as fit, without the first two."""
    stamps: list[float] = []
    ids = torch.randint(clip.tower.token_embedding.num_embeddings - 2, (settings.tokens,))

    def stamp(*_: Any) -> None:
        _wait(clip.device)
        stamps.append(time.perf_counter())
        if len(stamps) > 4 and stamps[-1] - stamps[0] > seconds:
            raise TimeoutError

    _forget_peak(clip.device)
    with contextlib.suppress(TimeoutError):
        learn_as_published(clip, target, ids, dataclasses.replace(settings, steps=1_000_000), stamp)
    steps = [b - a for a, b in itertools.pairwise(stamps[2:])]
    flop = cost.baseline_step_flop(clip, settings.tokens)
    memory = _peak(clip.device)  # before the matrix products below allocate more
    return Speed("baseline (fp32)", median(steps), flop, matrix_peak(clip.device, torch.float32), memory)


def time_engine(clip: Clip, engine: Clip, target: torch.Tensor, settings: pez.PezSettings, seconds: float) -> Speed:
    """Time steps of the engine with all lanes busy: the median of as many as fit, without the first two.

    Args:
        clip: in float32 and not compiled, the reference.

    Raises:
        ValueError: the engine's gradients differ from those of `clip`, or its lanes are not finite in the end.
    """
    vocabulary = engine.vocabulary(settings)
    _check_gradients(clip, engine, settings.tokens, target)
    endless = dataclasses.replace(settings, steps=2**31)
    walk = Walk(ClipObjective(engine.encoder(settings.tokens)), vocabulary, endless, len(target))
    for i, direction in enumerate(target):
        walk.admit(started(Task(f"{i}", direction), vocabulary, endless))
    _forget_peak(clip.device)
    stamps: list[float] = []
    while len(stamps) < 6 or stamps[-1] - stamps[0] < seconds:
        walk.step()
        _wait(clip.device)
        stamps.append(time.perf_counter())
    memory = _peak(clip.device)
    if not (walk.soft.isfinite().all() and walk.best_score.isfinite().all()):
        raise ValueError(f"the engine with {len(target)} lanes ended in non-finite numbers")
    steps = [b - a for a, b in itertools.pairwise(stamps[2:])]
    flop = cost.engine_step_flop(clip, settings.tokens, vocabulary.allowed)
    name = f"engine ({engine.precision}{', compiled' if engine.compiled else ''}, {len(target)} lanes)"
    return Speed(name, median(steps) / len(target), flop, matrix_peak(clip.device, engine.dtype), memory)


def _check_gradients(clip: Clip, engine: Clip, tokens: int, target: torch.Tensor) -> None:
    """Compare the engine's gradients with the reference on random prompts.

    Uses the timed number of lanes, so that the kernels are the same; sixteen lanes are compared.
    """
    embedding = clip.tower.token_embedding.weight
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(len(embedding) - 2, (len(target), tokens), generator=generator).to(clip.device)
    gradients = []
    for model, rows in ((clip, slice(16)), (engine, slice(None))):
        soft = embedding[ids[rows]].requires_grad_()
        score = ClipObjective(model.encoder(tokens)).score(soft, target[rows])
        gradients.append(torch.autograd.grad(score.sum(), soft)[0][:16].flatten(1))
    least = float(F.cosine_similarity(*gradients).min())
    if not least > 0.95:
        raise ValueError(f"the engine's gradients differ from the model's: cosine {least:.3f}; expected above 0.95")


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large square matrix product with random operands: the best of several."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        _wait(device)
        times.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(times)


def machine(device: torch.device) -> str:
    """The machine that figures were measured on."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{_processor()}, {torch.get_num_threads()} threads"
    )
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    """Peak memory of the GPU, or of this process since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
