"""Overhead of the pipeline, for `jobs.benchmark --overhead`: the same images as shards and as a list.

The list goes through `pez.learn_prompts`. The shards, four as in the demo, go through `learn_unit` concurrently, as in an
actor, from tar to published Parquet. Both alternate, and alternate in going first, so that a busy machine slows both equally.
One-time costs of a job (starting Ray, loading the model) are excluded.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

from PIL import Image

import pez
from pez.demo import scenes
from pez.models.joint import AnyClip
from pipeline.settings import CaptionSettings
from pipeline.sources.base import Unit
from pipeline.sources.demo_shards import write_scenes
from pipeline.stages.learn import Learner, describe, learn_unit
from pipeline.table import PromptTable


@dataclasses.dataclass(frozen=True)
class Overhead:
    """Seconds for all images, medians over the rounds."""

    images: int
    bare_seconds: float
    pipeline_seconds: float
    share: float
    """median over the rounds of the overhead, relative to the bare time"""


_SHARDS = 4


def measure_overhead(method: pez.PezSettings, images: int = 64, rounds: int = 9) -> Overhead:
    """Time both on the demo guide and drawn scenes.

    Args:
        images: total number of images; all are learned side by side.
    """
    settings = CaptionSettings(model="demo", lanes=-(-images // 16) * 16)
    learner = Learner(settings, method)
    drawn = scenes.held_out_scenes(images)
    originals = [Image.fromarray(scenes.render(scene)) for scene in drawn]
    keys = [f"{i:05d}" for i in range(images)]
    bare: list[float] = []
    piped: list[float] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(_SHARDS) as threads:
        shards = [Unit(f"{folder}/{i}.tar", f"{i}") for i in range(_SHARDS)]
        each = -(-images // _SHARDS)
        for i, shard in enumerate(shards):
            write_scenes(Path(shard.url), drawn[each * i : each * (i + 1)], first=each * i)
        for i in range(rounds + 1):
            table = PromptTable(f"{folder}/out-{i}", describe(settings, method, "cpu"))
            ways: list[tuple[list[float], Callable[[], None]]] = [
                (bare, partial(_learn_all, learner.clip, originals, method, keys)),
                (piped, partial(_learn_shards, threads, shards, learner, table)),
            ]
            for seconds, way in ways if i % 2 else reversed(ways):
                seconds.append(_seconds(way))
    bare, piped = bare[1:], piped[1:]  # the first round warms up
    share = median(p / b for b, p in zip(bare, piped, strict=True)) - 1
    return Overhead(images, median(bare), median(piped), share)


def _learn_all(clip: AnyClip, images: list[Image.Image], method: pez.PezSettings, keys: list[str]) -> None:
    pez.learn_prompts(clip, images, method, keys)


def _learn_shards(threads: ThreadPoolExecutor, shards: list[Unit], learner: Learner, table: PromptTable) -> None:
    for _ in threads.map(lambda shard: learn_unit(shard, learner, table), shards):
        pass


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
