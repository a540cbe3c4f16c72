"""From a unit of images to the sums of their features by group: the first of two stages that learn prompts for groups.

The second stage adds the sums of all units and learns; it is that of single images, with another source
(`pipeline/sources/groups.py`).
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

from pez.models.load import load_model
from pipeline.member_table import EmbedReport, Member, MemberTable
from pipeline.run import warning_log
from pipeline.settings import LearnSettings
from pipeline.sources.ahead import ahead
from pipeline.sources.base import Item, LateField, Unit, UnitError
from pipeline.sources.group_sums import GroupSum, SumsWriter, Vector
from pipeline.sources.grouping import GroupedSource
from pipeline.stages.learn import Decoded, Progress
from pipeline.stages.work_clock import WorkClock

_BATCH = 16  # images, see pez.models.clip
_WAITING = 65_536  # images of a unit whose JSON has not been read yet


def embed_unit(unit: Unit, embedder: "Embedder", table: MemberTable) -> EmbedReport:
    """Write the sums of a unit's features by group, and the group of each of its keys.

    Raises:
        UnitError: the unit cannot be read to its end, or has no items; nothing is published.
    """
    if report := table.finished(unit):
        return report
    left_out: Counter[str] = Counter()
    with embedder.clock.work() as seconds, warning_log.recording() as found:
        sums = table.sums(unit)
        members = dict(embedder.embed(unit, embedder.source.read(unit, left_out), sums))
        if not members:
            noun, expected = embedder.source.nouns
            raise UnitError(f"no {noun} in {unit.url}; expected {expected}")
        if report := table.finished(unit):  # meanwhile, by another run on the same output
            return report
        warnings = list(dict.fromkeys([*embedder.opening, *found]))
        return table.publish(unit, [members[i] for i in sorted(members)], sums, seconds(), left_out, warnings)


class Embedder:
    """Computes features of images with a CLIP; one per actor.

    Args:
        threads: number of threads that decode images in advance.
    """

    def __init__(
        self, settings: LearnSettings, source: GroupedSource, device: str | torch.device = "cpu", threads: int = 2
    ) -> None:
        self.source, self.threads = source, threads
        with warning_log.recording() as self.opening:
            self.clip = load_model(settings.on(str(device)), device)
        self.clock = WorkClock()
        self.progress = Progress()

    def embed(self, unit: Unit, items: Iterable[Item], sums: SumsWriter) -> Iterator[tuple[int, Member]]:
        """Add the feature of every image to the sum of its group, in the order of the items.

        Yields:
            (index, member) for every item; once more for each item whose field came late.
        """
        self.progress = Progress()
        waiting: _Waiting = {}
        batch: list[Decoded] = []
        for decoded in ahead(items, self._decode, self.threads, 4 * _BATCH):
            item = decoded.item
            if isinstance(item, LateField):
                yield from self._late(item, batch, waiting, sums)
            elif decoded.pixels is None:
                self._wait(item, None, waiting)
                yield item.index, self._counted(item, None, sums)
            else:
                batch.append(decoded)
                if len(batch) == _BATCH:
                    yield from self._add(batch, waiting, sums)
        yield from self._add(batch, waiting, sums)

    def _late(
        self, late: Item, batch: list[Decoded], waiting: "_Waiting", sums: SumsWriter
    ) -> Iterator[tuple[int, Member]]:
        """The group of an image that was read before its JSON."""
        yield from self._add(batch, waiting, sums)  # it may be among these
        if (found := waiting.pop(late.index, None)) is not None:
            item, vector = found
            item = dataclasses.replace(item, group=late.group, no_group=late.no_group)
            yield item.index, self._counted(item, vector, sums)

    def _add(self, batch: list[Decoded], waiting: "_Waiting", sums: SumsWriter) -> Iterator[tuple[int, Member]]:
        """Embed a batch, and empty it."""
        if not batch:
            return
        pixels = torch.stack([decoded.pixels for decoded in batch if decoded.pixels is not None])
        # As in pez.objectives.clip, so that a group has the prompt that Python learns for the same images.
        units = F.normalize(self.clip.pixel_features(pixels), dim=-1).double().cpu().numpy()
        for decoded, unit in zip(batch, units, strict=True):
            vector = unit.copy()  # so that a sum does not keep its neighbors in memory
            self._wait(decoded.item, vector, waiting)
            yield decoded.item.index, self._counted(decoded.item, vector, sums)
        batch.clear()

    def _wait(self, item: Item, vector: Vector | None, waiting: "_Waiting") -> None:
        """Keep an image whose JSON may come later."""
        if item.group is None and self.source.by.kind == "json" and len(waiting) < _WAITING:
            waiting[item.index] = item, vector

    def _counted(self, item: Item, vector: Vector | None, sums: SumsWriter) -> Member:
        """Add a feature, or a failure, to the sum of its group."""
        status, reason = item.status, item.reason
        if vector is not None and not np.isfinite(vector).all():
            status, vector = "not_finite", None
            reason = "its feature is NaN: the model overflowed on this image; try --precision fp32"
        if item.group is None:
            return Member(item.key, None, "no_group" if vector is not None else status, reason or item.no_group)
        if vector is None:
            failure = f"{item.key}: {reason or status}"
            sums.add(item.group, GroupSum(failed=1, status=status, reason=failure))
        else:
            sums.add(item.group, GroupSum(images=1, vector=vector))
            self.progress.images += 1
        return Member(item.key, item.group, status, reason)

    def _decode(self, item: Item) -> Decoded:
        return Decoded.of(item, self.clip)


_Waiting = dict[int, tuple[Item, Vector | None]]
"""images without a group so far, and their features, by index"""
