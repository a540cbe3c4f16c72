"""From a unit to its table: items, images, features, prompts, rows."""

import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

import pez
from pez.images import ImageError, decode_image
from pez.learn import settings_for
from pez.models.joint import AnyClip
from pez.models.load import load_model
from pipeline.description import describe as describe
from pipeline.rows import Row, ShardReport
from pipeline.run import warning_log
from pipeline.run.tasks import Part
from pipeline.settings import CaptionSettings, DistillSettings, LearnSettings
from pipeline.sources.ahead import ahead, batches
from pipeline.sources.base import Item, LateCaption, Source, Unit, UnitError
from pipeline.sources.choice import source_of
from pipeline.stages.fewest_tokens import FewestTokens
from pipeline.stages.lanes import BATCH, Direction, Request, SharedLanes
from pipeline.stages.learned_columns import learned_values
from pipeline.stages.parts import (
    PartItems,
    PartReport,
    finished_part,
    part_of_whole,
    publish_part,
)
from pipeline.stages.work_clock import WorkClock
from pipeline.table import PromptTable

_NOT_FINITE = "similarity is NaN: the model overflowed on this target; try --precision fp32"


@dataclasses.dataclass
class Progress:
    """Progress of the current units, for display."""

    images: int = 0
    similarity: float = 0.0
    """sum over images"""
    learning: int = 0
    """number of prompts being learned"""
    steps: int = 0
    """total number of steps of these prompts so far"""
    of: int = 0
    """steps per prompt"""
    busy_lanes: int = 0
    """number of searches in progress: one for each restart of a prompt"""
    shards_done: float = 0.0
    """finished share of the current shards, in shards; 0 if their size is unknown"""
    gpu_memory: int = 0
    """bytes that PyTorch holds on the GPU; 0 on a CPU"""


@dataclasses.dataclass
class _UnitInWork:
    """Counts of one unit, and the number of images it may have, extrapolated from the bytes read."""

    size: int | None
    """bytes of the tar; None = unknown"""
    parts: int
    images: int = 0
    similarity: float = 0.0
    read: int = 0
    bytes_read: int = 0
    whole: bool = False
    """read to the end"""

    @property
    def expected(self) -> float | None:
        if self.whole:
            return self.read
        if not self.size or not self.bytes_read:
            return None
        return self.read * max(self.size / (self.bytes_read * self.parts), 1.0)


def learn_unit(unit: Unit, learner: "Learner", table: PromptTable, retry_failed: bool = False) -> ShardReport:
    """Turn one unit, such as a tar of images, into one Parquet file of prompts.

    Args:
        retry_failed: redo the rows of a finished unit that are not ok.

    Raises:
        UnitError: the unit cannot be read to its end, or has no items; nothing is published.
    """
    if report := table.finished(unit):  # by an earlier run, or by an actor that was lost after publishing
        return _learn_failed(unit, report, learner, table) if retry_failed and report.failed else report
    left_out: Counter[str] = Counter()
    with learner.clock.work() as seconds, learner.recording() as warnings:
        rows = dict(learner.learn(unit, learner.items(unit, left_out)))
        if not rows:
            raise learner.nothing_in(unit)
        if report := table.finished(unit):  # meanwhile, by another run on the same output
            return report
        return table.publish(unit, [rows[i] for i in sorted(rows)], seconds(), left_out, warnings())


def learn_part(part: Part, learner: "Learner", table: PromptTable) -> PartReport:
    """Learn the rows of every n-th item; the others are read but not decoded."""
    if table.finished(part.unit):  # by another run, or by an earlier one whose failed rows are to be redone
        return part_of_whole(part, table)
    if report := finished_part(part, table):
        return report
    left_out: Counter[str] = Counter()
    items = PartItems(part, learner.items(part.unit, left_out))
    with learner.clock.work() as seconds, learner.recording() as warnings:
        rows = dict(learner.learn(part.unit, items, part.parts))
        if not items.count:
            raise learner.nothing_in(part.unit)
        if table.finished(part.unit):  # another run on the same output has merged and removed the parts
            return part_of_whole(part, table)
        return publish_part(part, [rows[i] for i in sorted(rows)], items, left_out, seconds(), table, warnings())


def _learn_failed(unit: Unit, earlier: ShardReport, learner: "Learner", table: PromptTable) -> ShardReport:
    """Redo the rows of a finished unit that are not ok."""
    rows = table.read_rows(f"{unit.stem}.parquet")
    failed = {row.key for row in rows if row.status != "ok"}
    keys: list[tuple[int, str]] = []
    left_out: Counter[str] = Counter()

    def again() -> Iterator[Item]:
        for item in learner.items(unit, left_out):
            if not isinstance(item, LateCaption):
                keys.append((item.index, item.key))
            if item.key in failed:
                yield item

    with learner.clock.work() as seconds, learner.recording() as warnings:
        new = {row.key: row for _, row in learner.learn(unit, again())}
        spent = earlier.seconds + seconds()
    if [key for _, key in sorted(keys)] != [row.key for row in rows]:
        raise UnitError(
            f"the keys of {unit.url} have changed since its prompts were learned; "
            f"remove {table.url}/{unit.stem}.parquet to redo all of them"
        )
    table.remove(f"_verified/{unit.stem}.json")  # it belongs to the earlier rows
    return table.publish(
        unit, [new.get(row.key, row) for row in rows], spent, left_out, [*earlier.warnings, *warnings()]
    )


class Learner:
    """Learns prompts with a CLIP; one per actor.

    Args:
        threads: number of threads that decode images in advance.
        source: how to read units; default = according to the settings.
        lanes: learn here; default = lanes of the settings' model.
    """

    def __init__(
        self,
        settings: LearnSettings,
        method: pez.PezSettings,
        device: str | torch.device = "cpu",
        threads: int = 2,
        source: Source | None = None,
        lanes: SharedLanes | None = None,
    ) -> None:
        self.settings, self.threads = settings.on(str(device)), threads
        self.source = source or source_of(settings)
        with warning_log.recording() as self.opening:
            self.clip = lanes.clip if lanes else load_model(self.settings, device)
            self.method = settings_for(self.clip, method)
        # Created here, so that a word that the model does not have fails at the start, not in each unit.
        self.caption_weight = settings.caption_weight if isinstance(settings, CaptionSettings) else 0.0
        side_by_side, keep = (
            self.settings.side_by_side,
            settings.keep if isinstance(settings, DistillSettings) else None,
        )
        self.lanes: SharedLanes | FewestTokens = lanes or (
            SharedLanes(self.clip, self.method, side_by_side, self.caption_weight)
            if keep is None
            else FewestTokens(self.clip, self.method, side_by_side, keep)
        )
        self.clock = WorkClock()
        self._in_work: dict[int, _UnitInWork] = {}

    @contextlib.contextmanager
    def recording(self) -> Iterator[Callable[[], list[str]]]:
        """Record warnings during the work on one unit; yields a function that returns them, including those of loading."""
        with warning_log.recording() as found:
            yield lambda: list(dict.fromkeys([*self.opening, *found]))

    @property
    def progress(self) -> Progress:
        """Progress of all current units."""
        units = list(self._in_work.values())
        of = self.method.total_steps
        images, similarity = sum(s.images for s in units), sum(s.similarity for s in units)
        found = Progress(images, similarity, self.lanes.learning, self.lanes.steps, of, self.lanes.busy_lanes)
        if self.clip.device.type == "cuda":
            found.gpu_memory = torch.cuda.memory_reserved(self.clip.device)
        expected = [s.expected for s in units]
        if units and None not in expected:
            size = sum(count or 0.0 for count in expected)
            found.shards_done = min((found.images + found.steps / of) / max(size, 1.0), 1.0) * len(units)
        return found

    def items(self, unit: Unit, left_out: Counter[str]) -> Iterator[Item]:
        """The items of a unit; see Source.read. If captions are targets, each item has its caption."""
        items = self.source.read(unit, left_out)
        return self._with_captions(items, unit) if self.caption_weight else items

    def _with_captions(self, items: Iterator[Item], unit: Unit) -> Iterator[Item]:
        """Move items whose caption comes later to the end; the unit is read again for them, so that no image is kept."""
        waiting: set[int] = set()
        late: dict[int, str | None] = {}
        for item in items:
            if isinstance(item, LateCaption) and item.index in waiting:
                late[item.index] = item.caption
            elif item.status == "ok" and item.caption is None and not isinstance(item, LateCaption):
                waiting.add(item.index)
            else:
                yield item
        for item in self.source.read(unit, Counter()) if waiting else ():
            if item.index in waiting and not isinstance(item, LateCaption):
                yield dataclasses.replace(item, caption=late.get(item.index), size=0)

    def nothing_in(self, unit: Unit) -> UnitError:
        """The error for a unit without items."""
        noun, expected = self.source.nouns
        return UnitError(f"no {noun} in {unit.url}; expected {expected}")

    def learn(self, unit: Unit, items: Iterable[Item], parts: int = 1) -> Iterator[tuple[int, Row]]:
        """Learn a prompt for every item that has an image or a text.

        Args:
            parts: number of parts of the unit, if the items are those of one part.

        Yields:
            (index, row) for every item, in the order in which they finish; at the end once more for each item whose
            caption came late.
        """
        progress = _UnitInWork(self.source.size(unit), parts)
        rejected: list[tuple[int, Row]] = []
        late = _LateCaptions()

        def requests() -> Iterator[Request]:
            for decoded in ahead(counted(), self._decode, self.threads, max(2 * BATCH, 4 * self.threads)):
                if isinstance(decoded.item, LateCaption):
                    late.texts[decoded.item.index] = decoded.item.caption or ""
                elif decoded.item.status != "ok":
                    rejected.append((decoded.item.index, _rejection(unit, decoded.item)))
                else:
                    progress.read += 1
                    yield self._request(decoded)
            progress.whole = True

        def counted() -> Iterator[Item]:
            for item in items:
                progress.bytes_read += item.size
                yield item

        self._in_work[id(progress)] = progress
        try:
            for done in self.lanes.results(batches(requests(), BATCH)):
                for result in done:
                    decoded: Decoded = result.handle
                    row = self._row(unit, decoded, result.prompt, result.caption_similarity)
                    if row.status == "ok":
                        progress.images += 1
                        progress.similarity += result.prompt.similarity
                    if decoded.item.caption is None and decoded.item.text is None:
                        late.rows[decoded.item.index] = decoded, result.prompt, result.direction
                    yield decoded.item.index, row
                yield from late.without_image(rejected)
                rejected.clear()
            yield from late.without_image(rejected)
            yield from self._with_late_captions(unit, late)
        finally:
            del self._in_work[id(progress)]

    def _with_late_captions(self, unit: Unit, late: "_LateCaptions") -> Iterator[tuple[int, Row]]:
        """Updated rows of items whose captions came after them."""
        for index, row in late.rejected.items():
            if index in late.texts:
                yield index, dataclasses.replace(row, caption=late.texts[index])
        for batch in batches((index for index in late.rows if index in late.texts), BATCH):
            captions: list[str | None] = [late.texts[index] for index in batch]
            of_captions = self.lanes.score_captions(captions, torch.stack([late.rows[index][2] for index in batch]))
            for index, caption, of_caption in zip(batch, captions, of_captions, strict=True):
                decoded, prompt, _ = late.rows[index]
                item = dataclasses.replace(decoded.item, caption=caption)
                yield index, self._row(unit, dataclasses.replace(decoded, item=item), prompt, of_caption)

    def _request(self, decoded: "Decoded") -> Request:
        target: Tensor | str | Direction | None = decoded.pixels if decoded.pixels is not None else decoded.item.text
        if decoded.item.direction is not None:
            target = Direction(torch.from_numpy(decoded.item.direction))
        assert target is not None, "an ok item has an image, a text or a direction"
        return Request(decoded.item.key, target, decoded.own_caption, dataclasses.replace(decoded, pixels=None))

    def _decode(self, item: Item) -> "Decoded":
        return Decoded.of(item, self.clip)

    def _row(self, unit: Unit, decoded: "Decoded", prompt: pez.Prompt, of_caption: float | None) -> Row:
        if not math.isfinite(prompt.similarity + prompt.token_similarity + (of_caption or 0.0)):
            item = dataclasses.replace(decoded.item, status="not_finite", reason=_NOT_FINITE)
            return dataclasses.replace(_rejection(unit, item), width=decoded.width, height=decoded.height)
        return Row(
            key=decoded.item.key,
            shard=unit.url,
            status="ok",
            width=decoded.width,
            height=decoded.height,
            caption=decoded.item.caption,
            prompt=prompt.text,
            token_ids=list(prompt.token_ids),
            similarity=prompt.similarity,
            token_similarity=prompt.token_similarity,
            caption_similarity=of_caption,
            steps=prompt.steps,
            seed=self.method.seed,
            model=self.clip.name,
            columns=decoded.item.columns | learned_values(self.settings, self.method, self.clip, decoded.item, prompt),
        )


@dataclasses.dataclass
class _LateCaptions:
    """Captions that come after their images, and what is needed to add them to rows; all by index."""

    texts: dict[int, str] = dataclasses.field(default_factory=dict)
    rows: dict[int, "tuple[Decoded, pez.Prompt, Tensor]"] = dataclasses.field(default_factory=dict)
    """(decoded without pixels, prompt, (dim,) direction) of rows with a prompt but no caption; a few kilobytes each"""
    rejected: dict[int, Row] = dataclasses.field(default_factory=dict)

    def without_image(self, rows: list[tuple[int, Row]]) -> list[tuple[int, Row]]:
        self.rejected.update((index, row) for index, row in rows if row.caption is None)
        return list(rows)


@dataclasses.dataclass(frozen=True)
class Decoded:
    """An item without its bytes, and its pixels if it has an image that can be decoded."""

    item: Item
    pixels: Tensor | None = None
    """(3, height, width) float, preprocessed for the model"""
    width: int | None = None
    """of the upright image"""
    height: int | None = None

    @classmethod
    def of(cls, item: Item, clip: AnyClip) -> "Decoded":
        """Decode the image of an item, if it has one; an image that cannot be decoded gives the item its reason."""
        bare = dataclasses.replace(item, image=None)
        if item.image is None:
            return cls(bare)
        try:
            image = decode_image(item.image)
        except ImageError as error:
            return cls(dataclasses.replace(bare, status="bad_image", reason=str(error)))
        return cls(bare, clip.preprocess(image), image.width, image.height)

    @property
    def own_caption(self) -> str | None:
        """The text that came with an image; None for texts to shorten."""
        return self.item.caption if self.item.text is None else None


def _rejection(unit: Unit, item: Item) -> Row:
    return Row(item.key, unit.url, item.status, item.reason, caption=item.caption, columns=item.columns)
