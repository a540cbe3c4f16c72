"""Tasks of workers: a whole unit, a part of one, or the merge of its parts."""

import dataclasses
from collections.abc import Iterable

from pipeline.sources.base import Unit


@dataclasses.dataclass(frozen=True)
class _OfUnit:
    """The common base of the three."""

    unit: Unit

    @property
    def detail(self) -> str:
        """Text to append to the name of the unit."""
        return ""

    def __str__(self) -> str:
        return f"{self.unit.stem}{self.detail}"


class Whole(_OfUnit):
    """A whole unit at once."""


@dataclasses.dataclass(frozen=True)
class Part(_OfUnit):
    """The items of a unit with `item.index % parts == index`; rows do not depend on parts."""

    index: int
    parts: int

    @property
    def detail(self) -> str:
        return f", part {self.index}-of-{self.parts}"


@dataclasses.dataclass(frozen=True)
class Merge(_OfUnit):
    """Merges the finished parts of a unit."""

    parts: int

    @property
    def detail(self) -> str:
        return f", merge of {self.parts} parts"


Task = Whole | Part | Merge


def split(unit: Unit, parts: int) -> list[Part]:
    """Split a unit into a number of parts."""
    return [Part(unit, index, parts) for index in range(parts)]


def tasks_of(units: Iterable[Unit], parts: int = 1) -> list[Task]:
    """The initial tasks of units: whole, or in parts that are merged when the last one is done."""
    if parts == 1:
        return [Whole(unit) for unit in units]
    return [part for unit in units for part in split(unit, parts)]
