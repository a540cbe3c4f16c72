"""The journey of one shard: tar, images, features, prompts, table."""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

import pez
from pez.clip import Precision, check_model
from pez.demo import GUIDE
from pez.learn import learn_tasks
from pez.optimizer import Task
from pipeline.ahead import ahead, batches
from pipeline.samples import Sample, ShardError, decode_image, read_samples
from pipeline.shards import Shard
from pipeline.table import PromptTable, Row, ShardReport

_IMAGES_AT_ONCE = 16  # the image tower's batch, see pez.clip


@dataclasses.dataclass(frozen=True)
class CaptionSettings:
    """What decides the rows, beside the images; a rerun on the same output must have the same."""

    model: str = "ViT-H-14"
    """demo, an open_clip name, hf-hub:ORG/REPO or local-dir:FOLDER"""
    pretrained: str = "laion2b_s32b_b79k"
    """tag or checkpoint file of an open_clip name; none = random weights"""
    precision: Precision = "fp32"
    """of the optimisation; similarities are always measured in fp32"""
    compiled: bool = False
    """compile the text tower; for long runs on a GPU"""
    lanes: int = 64
    """prompts learned side by side in an actor, a multiple of 16"""
    image_key: str | None = None
    """ending of the images in the tars, like jpg; default = any usual one"""
    caption_key: str | None = None
    """ending of the captions in the tars, like txt; default = txt, text or caption"""

    def __post_init__(self) -> None:
        if self.lanes < 1 or self.lanes % 16:
            raise ValueError(
                f"lanes is {self.lanes}; expected a multiple of 16, so that prompts do not depend on neighbours"
            )


@dataclasses.dataclass
class Progress:
    """Counts of the shard in work, for people."""

    images: int = 0
    similarity: float = 0.0
    """sum over images"""


def caption_shard(shard: Shard, captioner: "Captioner", table: PromptTable) -> ShardReport:
    """Turn one tar of images into one Parquet of prompts.

    Raises:
        ShardError: the tar cannot be read to its end, or holds no sample; nothing is published.
    """
    if report := table.finished(shard):  # an earlier run, or an actor that was lost after its last act
        return report
    start = time.monotonic()
    samples = read_samples(shard, captioner.settings.image_key, captioner.settings.caption_key)
    rows = dict(captioner.caption(shard, samples))
    if not rows:
        raise ShardError(f"{shard.url} holds no sample; expected members like 0001.jpg")
    if report := table.finished(shard):  # by another run on the same output, meanwhile
        return report
    return table.publish(shard, [rows[i] for i in sorted(rows)], time.monotonic() - start)


class Captioner:
    """A CLIP and what is done with it; one in each actor.

    Args:
        threads: that decode images ahead of the optimiser.
    """

    def __init__(
        self,
        settings: CaptionSettings,
        method: pez.PezSettings,
        device: str | torch.device = "cpu",
        threads: int = 2,
    ) -> None:
        self.settings, self.method, self.threads = settings, method, threads
        self.clip = load_model(settings, device)
        self.progress = Progress()

    def caption(self, shard: Shard, samples: Iterable[Sample]) -> Iterator[tuple[int, Row]]:
        """Learn a prompt for every sample that has an image.

        Yields:
            (index, row) for every sample, in the order in which they are done.
        """
        self.progress = Progress()
        rejected: list[tuple[int, Row]] = []

        def images() -> Iterator[Decoded]:
            for decoded in ahead(samples, self._decode, self.threads, 2 * self.settings.lanes):
                if decoded.pixels is None:
                    rejected.append((decoded.sample.index, _rejection(shard, decoded.sample)))
                else:
                    yield decoded

        def tasks() -> Iterator[Task]:
            for batch in batches(images(), _IMAGES_AT_ONCE):
                features = self.clip.pixel_features(torch.stack([d.pixels for d in batch if d.pixels is not None]))
                for decoded, feature in zip(batch, features, strict=True):
                    yield Task(decoded.sample.key, feature, handle=decoded)

        for ended in learn_tasks(self.clip, tasks(), self.method, self.settings.lanes):
            captions = [learned.task.handle.sample.caption for learned, _ in ended]
            directions = torch.stack([learned.task.target for learned, _ in ended])
            of_captions = self._caption_similarities(captions, directions)
            for (learned, prompt), of_caption in zip(ended, of_captions, strict=True):
                decoded = learned.task.handle
                self.progress.images += 1
                self.progress.similarity += prompt.similarity
                yield decoded.sample.index, self._row(shard, decoded, prompt, of_caption)
            yield from rejected
            rejected.clear()
        yield from rejected

    def _decode(self, sample: Sample) -> "Decoded":
        if sample.image is None:
            return Decoded(sample)
        try:
            image = decode_image(sample.image)
        except ValueError as error:
            return Decoded(dataclasses.replace(sample, image=None, status="bad_image", problem=str(error)))
        return Decoded(dataclasses.replace(sample, image=None), self.clip.preprocess(image), image.width, image.height)

    def _caption_similarities(self, captions: list[str | None], directions: Tensor) -> list[float | None]:
        if not any(captions):
            return [None] * len(captions)
        similarities = (self.clip.text_features([c or "" for c in captions]) * directions).sum(-1).tolist()
        return [s if c else None for s, c in zip(similarities, captions, strict=True)]

    def _row(self, shard: Shard, decoded: "Decoded", prompt: pez.Prompt, of_caption: float | None) -> Row:
        return Row(
            key=decoded.sample.key,
            shard=shard.url,
            status="ok",
            width=decoded.width,
            height=decoded.height,
            caption=decoded.sample.caption,
            prompt=prompt.text,
            token_ids=list(prompt.token_ids),
            similarity=prompt.similarity,
            token_similarity=prompt.token_similarity,
            caption_similarity=of_caption,
            steps=prompt.steps,
            seed=self.method.seed,
            model=self.clip.name,
        )


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A sample without its bytes, and its pixels if they could be decoded."""

    sample: Sample
    pixels: Tensor | None = None
    """(3, height, width) float, preprocessed for the model"""
    width: int | None = None
    """of the upright image"""
    height: int | None = None


def check_settings(settings: CaptionSettings, method: pez.PezSettings) -> None:
    """Find what is wrong with the settings before any work.

    Raises:
        ValueError: no such model or checkpoint, or more tokens than the model has room for.
    """
    name = f"local-dir:{GUIDE}" if settings.model == "demo" else settings.model
    check_model(name, settings.pretrained, method.tokens)


def load_model(settings: CaptionSettings, device: str | torch.device) -> pez.Clip:
    """The CLIP that the settings name."""
    if settings.model == "demo":
        return pez.load_demo_clip(device, settings.precision, settings.compiled)
    return pez.load_clip(settings.model, settings.pretrained, device, settings.precision, settings.compiled)


def describe(settings: CaptionSettings, method: pez.PezSettings, device: str) -> dict[str, object]:
    """What decides the rows, as JSON values, for the fingerprint."""
    values = {**dataclasses.asdict(settings), **dataclasses.asdict(method), "device": torch.device(device).type}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def run_serially(
    shards: Iterable[Shard],
    captioner: Captioner,
    table: PromptTable,
    on_report: Callable[[ShardReport], None],
    attempts: int = 1,
    on_note: Callable[[str], None] = lambda _: None,
) -> dict[str, str]:
    """Caption shard after shard in this process; those that failed come again after the others.

    Args:
        attempts: tries that a shard has before it is given up.
        on_note: called with one line for each failure that is tried again.

    Returns:
        reason by address, of the shards that failed.
    """
    failed = {}
    queue = deque((shard, 1, 0.0) for shard in shards)
    while queue:
        shard, attempt, not_before = queue.popleft()
        time.sleep(max(not_before - time.monotonic(), 0))
        try:
            on_report(caption_shard(shard, captioner, table))
        except Exception as error:  # whatever befell this shard, the others are done
            reason = " ".join(str(error).split())[:500] or type(error).__name__
            if attempt < attempts:
                queue.append((shard, attempt + 1, time.monotonic() + retry_delay(attempt)))
                on_note(f"{shard.stem}: {reason}; it is tried again")
            else:
                failed[shard.url] = reason
    return failed


def retry_delay(failures: int) -> float:
    """Seconds before a shard that failed is tried again: 1, 2, 4 to 60, so that many attempts outlast a store's bad minutes."""
    return min(2.0 ** (failures - 1), 60.0)


def _rejection(shard: Shard, sample: Sample) -> Row:
    return Row(sample.key, shard.url, sample.status, sample.problem, caption=sample.caption)
