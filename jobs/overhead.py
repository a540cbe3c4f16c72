"""What the pipeline adds to the method, for `jobs.benchmark --overhead`: the same pictures as a shard and as a list.

The list goes through `pez.learn_prompts`; the shard through `caption_shard`, from tar to published Parquet. Both take turns,
so that a busy machine slows both. What a job pays once (start of Ray, loading the model) is left out.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from PIL import Image

import pez
from pez.demo import scenes
from pipeline.caption import Captioner, CaptionSettings, caption_shard, describe
from pipeline.demo_shards import write_scenes
from pipeline.shards import Shard
from pipeline.table import PromptTable


@dataclasses.dataclass(frozen=True)
class Overhead:
    """Seconds for all pictures, medians of the rounds."""

    images: int
    bare_seconds: float
    pipeline_seconds: float
    share: float
    """median over the rounds of what the pipeline adds, as a share of the bare time"""


def measure_overhead(method: pez.PezSettings, images: int = 64, rounds: int = 5) -> Overhead:
    """Time both on the shipped demo CLIP and drawn scenes.

    Args:
        images: in the shard; all are learned side by side.
    """
    settings = CaptionSettings(model="demo", lanes=-(-images // 16) * 16)
    captioner = Captioner(settings, method)
    told = scenes.held_out_scenes(images)
    pictures = [Image.fromarray(scenes.render(scene)) for scene in told]
    keys = [f"{i:05d}" for i in range(images)]
    bare, piped = [], []
    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder) / "scenes.tar"
        write_scenes(tar, told)
        for i in range(rounds + 1):
            table = PromptTable(f"{folder}/out-{i}", describe(settings, method, "cpu"))
            bare.append(_seconds(partial(pez.learn_prompts, captioner.clip, pictures, method, keys)))
            piped.append(_seconds(partial(caption_shard, Shard(str(tar), "scenes"), captioner, table)))
    bare, piped = bare[1:], piped[1:]  # the first round warms up
    share = median(p / b for b, p in zip(bare, piped, strict=True)) - 1
    return Overhead(images, median(bare), median(piped), share)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
