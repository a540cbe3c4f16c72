"""The interface between sources and stages: units of work, and the items in them.

A source is a small value that workers receive with their settings. It opens units, and never runs anything that it finds
in them.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pez.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclasses.dataclass(frozen=True)
class Unit:
    """An input file or a list of files; units are processed, written and resumed one by one."""

    url: str
    """the public URL or path, shown in rows, reports and messages; it identifies the unit"""
    stem: str
    """the base name of the output files; unique in a job"""
    source: str = dataclasses.field(default="", repr=False, compare=False)
    """the URL to open; it may contain a signature or password and is never shown"""

    def __post_init__(self) -> None:
        if not self.source:
            object.__setattr__(self, "source", self.url)


@dataclasses.dataclass(frozen=True)
class Item:
    """One key of a unit, with what to learn a prompt for, or the reason why there is nothing."""

    index: int
    """position of the key in the unit; numbers are missing if members turned out to belong to another key"""
    key: str
    image: bytes | None = dataclasses.field(default=None, repr=False)
    """the encoded image; None if there is none, and for texts"""
    text: str | None = None
    """a text to shorten; None for images"""
    caption: str | None = None
    """the text that came with the image"""
    status: str = "ok"
    """ok, or the kind of problem: no_image, bad_image, no_text, bad_text, bad_key"""
    reason: str | None = None
    """why it is not ok, in one line"""
    columns: dict[str, Any] = dataclasses.field(default_factory=dict)
    """values of the source's extra columns, by name; a missing one is null"""
    size: int = 0
    """share of the unit's size, in the units of `Source.size`"""
    direction: Any = dataclasses.field(default=None, repr=False, compare=False)
    """(dim,) float64 NumPy array: the mean feature of a group; None for images and texts"""
    field: Any = None
    """the value of the field or column that the job groups images by"""
    group: str | None = None
    """the group of an image, if the job groups images"""
    no_group: str | None = None
    """why it has none, in one line"""


@dataclasses.dataclass(frozen=True)
class LateCaption(Item):
    """Not an item of its own, but the caption of a key whose item was yielded earlier."""


@dataclasses.dataclass(frozen=True)
class LateField(LateCaption):
    """Not an item of its own, but the field of a key whose item was yielded earlier."""


class UnitError(UserError):
    """A unit cannot be read to its end; nothing of it is published."""

    def __init__(self, message: str, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent
        """retrying cannot help"""


class Source(Protocol):
    """Turns units into items."""

    @property
    def nouns(self) -> tuple[str, str]:
        """What a unit consists of and what is expected in it, for messages: ("image", "members like 0001.jpg")."""
        ...

    @property
    def columns(self) -> "Sequence[pa.Field]":
        """Extra nullable columns of the output; the values are in `Item.columns`."""
        ...

    def read(self, unit: Unit, left_out: Counter[str]) -> Iterator[Item]:
        """Stream a unit, always in the same order.

        Args:
            left_out: counts the contents of the unit that are in no item, by reason.

        Yields:
            one item for each key; LateCaptions for captions found after their item.

        Raises:
            UnitError: the unit cannot be read to its end.
        """
        ...

    def size(self, unit: Unit) -> int | None:
        """The size of a unit, in the units of `Item.size`; None if it is expensive to find out."""
        ...

    def describe(self) -> dict[str, Any]:
        """The settings that determine the rows, as JSON values without defaults, for the fingerprint."""
        ...
