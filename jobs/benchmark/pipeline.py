"""The pipeline at the speed of a GPU, for `jobs.benchmark --pipeline`: everything is real but the computation of the GPU.

Tars of photo-like JPEGs go through `learn_unit`, four at a time, as in an actor: reading, decoding, preprocessing, lanes and
their refill, tokenizing, rows, Parquet. Only the CLIP's towers and the search are stand-ins that wait as long as a GPU of the
given speed would compute. A walk waits once per step and keeps lanes that are not in use just as busy, as a GPU does, and
swaps wait once per batch; the operations counted in `pez.cost` say how the time of an image is divided between them.

What is not measured: the CPU time of launching kernels. The thread that drives a GPU is taken as one core.
"""

import dataclasses
import io
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import webdataset as wds
from PIL import Image
from torch import Tensor

import pez
from pez import cost
from pez.engine import Engine
from pez.methods.phase import Batch, OnStep, Phase
from pez.models.clip import Clip
from pez.objectives.clip import ClipObjective
from pez.tasks import Learned
from pipeline.rows import Row
from pipeline.run.estimate import cores_per_gpu
from pipeline.settings import CaptionSettings, ClusterSettings
from pipeline.sources.base import Item, Unit
from pipeline.stages.lanes import SharedLanes
from pipeline.stages.learn import Decoded, Learner, describe, learn_unit
from pipeline.table import PromptTable

_PICTURES = 16  # different ones; a tar repeats them under other keys


@dataclasses.dataclass(frozen=True)
class CpuSeconds:
    """CPU time per image, by where it is spent."""

    decoding: float
    """decoding and preprocessing"""
    lanes: float
    """the thread that drives the GPU: targets, refill, tokenizing, results; the GPU may be idle meanwhile"""
    rest: float
    """reading tars, making rows, writing Parquet"""

    @property
    def total(self) -> float:
        return self.decoding + self.lanes + self.rest


@dataclasses.dataclass(frozen=True)
class PipelineSpeed:
    """How busy the pipeline keeps a GPU of a given speed."""

    asked: float
    """images per second that the GPU alone would learn"""
    busy: float
    """share of the time that the GPU computed for images, from the first full lanes to the last refill"""
    empty: float
    """share of the lanes that were empty while it computed: they waited for images"""
    images: int
    seconds: float
    """of the whole run, with the filling and emptying of the lanes"""
    cpu_seconds: CpuSeconds
    peak_bytes: int
    """memory of this process, with the model"""

    @property
    def sustained(self) -> float:
        """Images per second, while there is input."""
        return self.asked * self.busy

    @property
    def cores(self) -> float:
        """Cores that a GPU needs at the speed asked for."""
        return cores_per_gpu(self.asked, self.cpu_seconds.total)


def measure_pipeline(
    clip: Clip,
    method: pez.PezSettings,
    images_per_second: float,
    images: int,
    lanes: int,
    threads: int,
    shard_size: int,
    image_size: int = 512,
) -> PipelineSpeed:
    """Run shards of photos through the pipeline, at the speed of a GPU.

    Args:
        clip: for its preprocessing, tokenizer and vocabulary.
        images_per_second: that the GPU alone would learn.
        images: total number; more than lanes.
        threads: threads that decode, per shard that is being read.
        image_size: width and height of the photos.
    """
    gpu = SimulatedGpu(lanes, images)
    clip = _Towerless(clip)
    settings = CaptionSettings(model=clip.name, pretrained="none", lanes=lanes)
    shared = SharedLanes(clip, method, lanes, engine=waiting_engine(clip, method, gpu, images_per_second))
    learner = _TimedLearner(settings, method, threads=threads, lanes=shared)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(ClusterSettings().shards_at_once) as pool:
        shards = write_shards(Path(folder), images, shard_size, image_size)
        described = describe(settings, method, "cpu")
        PromptTable(f"{folder}/warm", described).publish(Unit("warm.tar", "warm"), [Row("0", "warm.tar", "ok")], 1.0)
        table = PromptTable(f"{folder}/out", described)
        start, cpu = time.perf_counter(), time.process_time()
        for report in pool.map(lambda shard: learn_unit(shard, learner, table), shards):
            assert report.ok == report.rows, report.failures[:1]
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    decoding, driving = learner.seconds / images, gpu.thread_seconds / images
    spent = CpuSeconds(decoding, driving, max(0.0, cpu / images - decoding - driving))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return PipelineSpeed(images_per_second, gpu.busy, gpu.empty, images, seconds, spent, peak)


class SimulatedGpu:
    """Waits as long as a GPU would compute, and keeps account of it.

    Args:
        lanes: prompts that it computes side by side; to compute fewer takes as long.
        images: that it will learn; more than lanes.
    """

    def __init__(
        self,
        lanes: int,
        images: int,
        now: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.lanes, self._images, self._now, self._sleep = lanes, images, now, sleep
        self._admitted = 0
        self.computing = self.useful = 0.0
        """seconds that it has computed, and those times the share of busy lanes"""
        self.thread_seconds = 0.0
        """CPU time of the thread that drives it"""
        self._thread, self._thread_start = 0, 0.0
        self._marks: list[
            tuple[float, float, float]
        ] = []  # (clock, computing, useful) at the ends of the measured time

    def admit(self) -> None:
        """Count an image that gets a lane. Time is measured from when all have got one to when the last image does."""
        self._admitted += 1
        if self._admitted in (self.lanes, self._images):
            self._marks.append((self._now(), self.computing, self.useful))

    def compute(self, seconds: float, filled: float) -> None:
        """Compute with a share of the lanes filled, in the time that all take."""
        if self._thread != (here := threading.get_ident()):  # it ends when no shard is left, and another follows
            self._thread, self._thread_start = here, time.thread_time() - self.thread_seconds
        self.thread_seconds = time.thread_time() - self._thread_start
        self._sleep(seconds)
        self.computing += seconds
        self.useful += seconds * filled

    @property
    def busy(self) -> float:
        """Share of the measured time in which it computed for images."""
        clock, _, useful = self._between()
        return useful / clock

    @property
    def empty(self) -> float:
        """Share of the lanes that were empty while it computed, in the measured time."""
        _, computing, useful = self._between()
        return 1 - useful / computing

    def _between(self) -> Sequence[float]:
        first, last = self._marks
        return [b - a for a, b in zip(first, last, strict=True)]


def waiting_engine(clip: Clip, method: pez.PezSettings, gpu: SimulatedGpu, images_per_second: float) -> Engine:
    """The real engine, with phases that wait."""
    vocabulary = clip.vocabulary(method)
    method = method.for_vocabulary(len(vocabulary.ids))
    objective = ClipObjective(clip.encoder(method.tokens))
    whole = cost.method_flop(clip, method, vocabulary)
    walk = method.gradient_steps * cost.step_flop(clip, method, vocabulary.allowed)
    swaps = cost.swaps_flop(clip, method.tokens, method.rounds, method.tried, vocabulary.allowed)
    lanes = method.swap_lanes(gpu.lanes)
    in_walk = gpu.lanes / images_per_second * walk / whole  # seconds, of all lanes
    in_swaps = lanes / images_per_second * swaps / whole

    def swap(_: Any, __: Any, prompts: Sequence[Learned], *___: Any) -> list[Learned]:
        gpu.compute(in_swaps, len(prompts) / lanes)
        return [dataclasses.replace(prompt, score=0.5) for prompt in prompts]

    phases: list[Phase] = [
        _WaitingWalk(gpu, method.gradient_steps, in_walk / method.gradient_steps),
        Batch(swap, "swaps", objective, vocabulary, method, lanes),
    ]
    return Engine(objective, vocabulary, method, gpu.lanes, phases=phases[: 2 if method.rounds else 1])


class _WaitingWalk:
    """In the place of a walk: a step of all lanes waits, and a finished lane takes the next task."""

    def __init__(self, gpu: SimulatedGpu, steps: int, seconds: float) -> None:
        self.gpu, self.lanes, self._steps, self._seconds = gpu, gpu.lanes, steps, seconds
        self._taken: list[tuple[Learned, int]] = []  # the prompts in progress, and the step at which each was admitted
        self._step = 0

    @property
    def prompts(self) -> list[Learned]:
        return [prompt for prompt, _ in self._taken]

    @property
    def free(self) -> int:
        return self.lanes - len(self._taken)

    @property
    def steps(self) -> int:
        return sum(self._step - first for _, first in list(self._taken))

    def admit(self, prompt: Learned) -> None:
        self._taken.append((prompt, self._step))
        self.gpu.admit()

    def step(self, more: bool, on_step: OnStep | None) -> list[Learned]:
        if not self._taken:
            return []
        self.gpu.compute(self._seconds, len(self._taken) / self.lanes)
        self._step += 1
        done = [prompt for prompt, first in self._taken if self._step - first == self._steps]
        self._taken = [(prompt, first) for prompt, first in self._taken if self._step - first < self._steps]
        return [dataclasses.replace(prompt, score=0.5, steps=self._steps) for prompt in done]

    def clear(self) -> None:
        self._taken = []

    def halved(self) -> None:
        return None


class _Towerless(Clip):
    """A CLIP whose towers answer at once, with the same feature for everything; all else is real."""

    def __init__(self, clip: Clip) -> None:
        super().__init__(
            clip.model, clip.preprocess, clip.tokenizer, clip.name, clip.device, recommended=clip.recommended
        )
        self._size = clip.text_features(["a"]).shape[1]

    def _in_batches(self, encode: Any, rows: Tensor) -> Tensor:
        return F.normalize(torch.ones(len(rows), self._size), dim=-1)


class _TimedLearner(Learner):
    """Adds up the CPU time of decoding and preprocessing."""

    seconds = 0.0

    def _decode(self, item: Item) -> Decoded:
        start = time.thread_time()
        decoded = super()._decode(item)
        self.seconds += time.thread_time() - start
        return decoded


def write_shards(folder: Path, images: int, shard_size: int, image_size: int) -> list[Unit]:
    """Tars as img2dataset writes them: JPEG, caption and JSON of each image. All have the same bytes, so they are links."""
    pictures = []
    for seed in range(min(_PICTURES, shard_size, images)):
        file = io.BytesIO()
        photo(seed, image_size).save(file, "JPEG", quality=90)
        pictures.append(file.getvalue())

    def write(name: str, count: int) -> Path:
        with wds.TarWriter(str(folder / name)) as tar:
            for i in range(count):
                about = {
                    "caption": f"a photo of number {i}",
                    "url": f"https://example.com/{i}.jpg",
                    "status": "success",
                }
                key, size = f"{i:09d}", {"width": image_size, "height": image_size}
                picture = pictures[i % len(pictures)]
                tar.write({"__key__": key, "jpg": picture, "json": about | size, "txt": about["caption"]})
        return folder / name

    full, rest = divmod(images, shard_size)
    units = []
    if full:
        first = write("00000.tar", shard_size)
        for i in range(1, full):
            os.link(first, folder / f"{i:05d}.tar")
        units = [Unit(str(folder / f"{i:05d}.tar"), f"{i:05d}") for i in range(full)]
    return [*units, Unit(str(write("rest.tar", rest)), "rest")] if rest else units


def photo(seed: int, size: int) -> Image.Image:
    """A picture with the spectrum of a photo: power falls with the frequency, and colors vary less than brightness.

    With 512 pixels and JPEG quality 90 it has about 90 KB.
    """
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    frequency[0, 0] = np.inf  # no mean

    def plane() -> Any:
        spectrum = np.fft.rfft2(generator.standard_normal((size, size))) / frequency**1.4
        values = np.fft.irfft2(spectrum, (size, size))
        return values / values.std()

    brightness, red, blue = plane(), plane(), plane()
    pixels = np.stack([brightness + 0.3 * red, brightness, brightness + 0.3 * blue], -1) * 45 + 128
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def show(speed: PipelineSpeed, say: Callable[[str], None]) -> None:
    """Print a measurement and what follows from it."""
    spent = speed.cpu_seconds
    idle = max(0.0, 1 - speed.busy - speed.empty)
    say(
        f"simulated GPU of {speed.asked:g} images/s: {speed.sustained:.1f} images/s sustained,"
        f" busy {speed.busy:.1%} of the time\n"
        f"{speed.empty:.1%} of the lanes waited for images;"
        f" the GPU waited about {idle:.1%} of the time for the thread that drives it\n"
        f"{speed.images} images in {speed.seconds:.1f} s, with filling and emptying the lanes"
    )
    say(
        f"CPU ms per image: {spent.decoding * 1e3:.2f} decoding and preprocessing, {spent.lanes * 1e3:.2f} in the thread that"
        f" drives the GPU, {spent.rest * 1e3:.2f} reading tars and writing rows; together {spent.total * 1e3:.2f}"
    )
    say(
        f"a GPU of {speed.asked:g} images/s needs {speed.cores:.1f} cores: one for the thread that drives it, and"
        f" {speed.cores - 1:.2f} for these; this machine has {os.cpu_count()}. Peak memory {speed.peak_bytes / 2**20:.0f} MB"
    )
