"""How fast, and how good for the time: the engine beside the plain algorithm, on this machine, in one run.

    python -m jobs.benchmark                                        # ViT-B-32, 8 tokens
    python -m jobs.benchmark --device cuda --model ViT-H-14 --tokens 16 --lanes 512 1024 2048 --json bench.json
    python -m jobs.benchmark --curve --model demo --images 256 --plot curve.png
    python -m jobs.benchmark --overhead                             # what the pipeline adds to the method

Needs `pez` alone (but for --overhead): no Ray, no files. Speed does not depend on the weights, so they are random unless
--pretrained names some.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import platform
import resource
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

import pez
from jobs.curve import curves, plot_curves
from pez import cost
from pez.baseline import learn_as_published
from pez.clip import Clip, ClipObjective
from pez.optimizer import Lanes, Task


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns its exit status."""
    options = parser().parse_args(arguments)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)  # random weights and targets are those of every run
    try:
        if options.overhead:
            result = benchmark_overhead(options, device)
        else:
            result = benchmark_curve(options, device) if options.curve else benchmark_speed(options, device)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=2)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line; argparse, so that a machine with torch and open_clip alone can run it."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="ViT-B-32", help="demo, an open_clip name, hf-hub:..., local-dir:...")
    options.add_argument("--pretrained", default="none", help="tag or checkpoint file; none = random weights")
    options.add_argument("--tokens", type=int, default=8)
    options.add_argument("--steps", type=int, default=500, help="of an image, for images an hour and for --curve")
    options.add_argument("--device", help="cpu or cuda; default = cuda where there is one")
    options.add_argument(
        "--precision", choices=("fp32", "bf16"), help="of the engine; default = bf16 where it is fast, fp32 for --curve"
    )
    options.add_argument("--lanes", type=int, nargs="+", help="one or more; default = 64 on a CPU, 1024 on a GPU")
    options.add_argument(
        "--compiled", action=argparse.BooleanOptionalAction, help="compile the text tower; default = on a GPU"
    )
    options.add_argument("--threads", type=int, help="CPU threads")
    options.add_argument("--seconds", type=float, default=8.0, help="that each way of computing is measured for")
    options.add_argument(
        "--vocabulary", choices=("model", "words", "full"), default="model", help="tokens of the engine"
    )
    options.add_argument("--json", metavar="FILE", help="write the figures; its `ratio` is ours over the baseline")
    options.add_argument("--curve", action="store_true", help="score against steps and seconds, on drawn scenes")
    options.add_argument("--overhead", action="store_true", help="the pipeline beside the bare method, demo CLIP")
    options.add_argument("--images", type=int, default=256, help="of --curve")
    options.add_argument("--baseline-steps", type=int, default=300, help="of --curve's baseline, prompt after prompt")
    options.add_argument("--swaps", type=int, default=24, help="rounds of --curve's default method")
    options.add_argument("--exact-steps", type=int, default=3000, help="of --curve's exact mode")
    options.add_argument("--plot", metavar="PNG", help="picture of --curve (needs matplotlib)")
    return options


@dataclasses.dataclass(frozen=True)
class Speed:
    """One way of computing, measured."""

    name: str
    seconds_per_image_step: float
    flop_per_image_step: float
    peak_flops: float
    """measured rate of a large matrix product in the same precision"""
    peak_bytes: int

    @property
    def share(self) -> float:
        return self.flop_per_image_step / self.seconds_per_image_step / self.peak_flops


def benchmark_speed(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Time a step of the baseline and of the engine; print a table."""
    precision = options.precision or ("bf16" if fast_bfloat16(device) else "fp32")
    lanes = options.lanes or ([64] if device.type == "cpu" else [1024])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights are meant here
        clip = _load(options, device, "fp32")
    settings = pez.PezSettings(tokens=options.tokens, vocabulary=options.vocabulary, exact=True)
    target = F.normalize(torch.randn(max(lanes), clip.text_features(["a"]).shape[1], device=device), dim=-1)
    print(f"{machine(device)}\n{clip.name}, {options.tokens} tokens\n")
    print(f"{'':38s}{'ms/image-step':>14s}{'ratio':>8s}{'GFLOP':>8s}{'of peak':>9s}{'peak MB':>9s}{'images/h':>10s}")

    def show(speed: Speed) -> Speed:
        ratio = (speeds[0] if speeds else speed).seconds_per_image_step / speed.seconds_per_image_step
        per_hour = 3600 / speed.seconds_per_image_step / options.steps
        print(
            f"{speed.name:38s}{speed.seconds_per_image_step * 1e3:14.3f}{ratio:8.1f}{speed.flop_per_image_step / 1e9:8.2f}"
            f"{speed.share:9.0%}{speed.peak_bytes / 2**20:9.0f}{per_hour:10.0f}",
            flush=True,
        )
        return speed

    speeds: list[Speed] = []
    speeds.append(show(time_baseline(clip, target[0], settings, options.seconds)))
    chosen = len(clip.vocabulary(settings).ids)  # found once for all lane counts, and after the baseline was timed
    engine = clip.with_engine(precision, _compiled(options, device))  # type: ignore[arg-type]
    for count in lanes:
        try:
            speeds.append(show(time_engine(clip, engine, target[:count], settings, options.seconds)))
        except RuntimeError as error:  # out of memory, of the compiler, of the device: the other lane counts still tell
            print(f"engine, {count} lanes: {type(error).__name__}: {' '.join(str(error).split())[:200]}", flush=True)
    if len(speeds) == 1:
        raise ValueError("the engine ran with none of these lane counts; choose others with --lanes")
    best = min(speeds[1:], key=lambda speed: speed.seconds_per_image_step)
    ratio = speeds[0].seconds_per_image_step / best.seconds_per_image_step
    print(
        f"\nratio {ratio:.1f}: image-steps a second, {best.name} over the baseline;"
        f" images/h at {options.steps} gradient steps.\n"
        f"The baseline projects on all {clip.tower.token_embedding.num_embeddings} tokens, the engine on {chosen}."
    )
    return {
        "ratio": ratio,
        "machine": machine(device),
        "model": clip.name,
        "tokens": options.tokens,
        "steps": options.steps,
        "speeds": [{**dataclasses.asdict(speed), "share_of_peak": speed.share} for speed in speeds],
    }


def time_baseline(clip: Clip, target: torch.Tensor, settings: pez.PezSettings, seconds: float) -> Speed:
    """Time steps of the plain algorithm: the median of as many as fit, the first two left out."""
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
    memory = _peak(clip.device)  # before the products that follow need some
    return Speed("baseline (fp32)", median(steps), flop, matrix_peak(clip.device, torch.float32), memory)


def time_engine(clip: Clip, engine: Clip, target: torch.Tensor, settings: pez.PezSettings, seconds: float) -> Speed:
    """Time steps of the engine with all lanes busy: the median of as many as fit, the first two left out.

    Args:
        clip: in float32 and not compiled, to check what is timed.

    Raises:
        ValueError: the engine's gradients are not those of the clip, or its lanes end in numbers that are not finite.
    """
    vocabulary = engine.vocabulary(settings)
    _check_gradients(clip, engine, settings.tokens, target)
    lanes = Lanes(ClipObjective(engine.encoder(settings.tokens)), vocabulary, settings, len(target))
    for i, direction in enumerate(target):
        lanes.admit(Task(f"{i}", direction))
    _forget_peak(clip.device)
    stamps: list[float] = []
    while len(stamps) < 6 or stamps[-1] - stamps[0] < seconds:
        lanes.step()
        _wait(clip.device)
        stamps.append(time.perf_counter())
    memory = _peak(clip.device)
    if not (lanes.soft.isfinite().all() and lanes.best_score.isfinite().all()):
        raise ValueError(f"the engine with {len(target)} lanes ended in numbers that are not finite; expected none")
    steps = [b - a for a, b in itertools.pairwise(stamps[2:])]
    flop = cost.engine_step_flop(clip, settings.tokens, vocabulary.allowed)
    name = f"engine ({engine.precision}{', compiled' if engine.compiled else ''}, {len(target)} lanes)"
    return Speed(name, median(steps) / len(target), flop, matrix_peak(clip.device, engine.dtype), memory)


def _check_gradients(clip: Clip, engine: Clip, tokens: int, target: torch.Tensor) -> None:
    """Compare the engine's gradients with the clip's on random prompts: what is fast must be right as well.

    As many lanes as are timed, so that the kernels are the same; sixteen of them are compared.
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
        raise ValueError(f"the engine's gradients are not the model's: cosine {least:.3f}; expected above 0.95")


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large square matrix product, random operands: the best of several."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        _wait(device)
        times.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(times)


def fast_bfloat16(device: torch.device) -> bool:
    """True where the hardware multiplies bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    checks: list[Callable[[], bool]] = [
        getattr(torch.cpu, name)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        if hasattr(torch.cpu, name)
    ]
    return any(check() for check in checks)


def machine(device: torch.device) -> str:
    """What the figures were measured on."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{_processor()}, {torch.get_num_threads()} threads"
    )
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


def benchmark_curve(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Score against steps and seconds, on held-out scenes."""
    clip = _load(options, device, "fp32").with_engine(options.precision or "fp32", _compiled(options, device))
    judge = pez.demo.load_demo_clip(device, folder=pez.demo.JUDGE) if options.model == "demo" else None
    settings = pez.PezSettings(
        tokens=options.tokens, steps=options.steps, swaps=options.swaps, vocabulary=options.vocabulary
    )
    print(
        f"{machine(device)}\n{clip.name}, {options.tokens} tokens, {clip.precision}, {options.images} held-out scenes\n"
    )
    points, gain = curves(clip, judge, settings, options.images, options.baseline_steps, options.exact_steps, print)
    ours, exact = ([p for p in points if p.method == method][-1] for method in ("default", "exact"))
    judged = "" if gain.judged is None else f", judge {gain.judged:+.4f} +- {gain.judged_interval:.4f}"
    print(
        f"\ndefault ({ours.steps} steps) over exact ({exact.steps}), scene by scene:"
        f" {gain.similarity:+.4f} +- {gain.interval:.4f}{judged}"
    )
    if options.plot:
        plot_curves(points, options.plot)
    return {
        "machine": machine(device),
        "model": clip.name,
        "tokens": options.tokens,
        "curve": [dataclasses.asdict(point) for point in points],
        "gain": dataclasses.asdict(gain),
    }


def benchmark_overhead(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The same pictures through the pipeline and through the bare method."""
    from jobs.overhead import measure_overhead  # the pipeline is not everywhere where pez is

    overhead = measure_overhead(pez.PezSettings(tokens=options.tokens, steps=options.steps))
    print(f"{machine(device)}\ndemo, {options.tokens} tokens, {options.steps} steps, {overhead.images} images\n")
    print(f"bare {overhead.bare_seconds:.2f} s, pipeline {overhead.pipeline_seconds:.2f} s: {overhead.share:+.1%}")
    return {"machine": machine(device), **dataclasses.asdict(overhead)}


def _compiled(options: argparse.Namespace, device: torch.device) -> bool:
    return device.type == "cuda" if options.compiled is None else options.compiled


def _load(options: argparse.Namespace, device: torch.device, precision: Any) -> Clip:
    if options.model == "demo":
        return pez.load_demo_clip(device, precision)
    return pez.load_clip(options.model, options.pretrained, device, precision)


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
    """Most memory held: of the GPU, or of this process since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
