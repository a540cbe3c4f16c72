"""What every source of images or texts gives to the stages: units of work, and the items in them.

A source is a small value that workers receive with their settings. It opens the units it is given, and never runs anything
that it finds in them.
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
    """One file of the input: the unit of work, of output and of resume."""

    url: str
    """the public URL or path: rows, reports and messages show it, and it identifies the unit"""
    stem: str
    """names the output files; unique in a job"""
    source: str = dataclasses.field(default="", repr=False, compare=False)
    """what is opened: the url, or one with a signature or password in it, which is never shown"""

    def __post_init__(self) -> None:
        if not self.source:
            object.__setattr__(self, "source", self.url)


@dataclasses.dataclass(frozen=True)
class Item:
    """One key of a unit, as found: what a prompt is learned for, or the reason why there is nothing."""

    index: int
    """order of the keys in the unit; numbers may be missing where members turned out to belong to another key"""
    key: str
    image: bytes | None = dataclasses.field(default=None, repr=False)
    """an encoded image; None for items that have none, and for texts"""
    text: str | None = None
    """a text to shorten; None for images"""
    caption: str | None = None
    """the text that came with the image; of a text, the text itself"""
    status: str = "ok"
    """ok, or the kind of problem: no_image, bad_image, no_text, bad_text, bad_key"""
    reason: str | None = None
    """why it is not ok, in one line"""
    columns: dict[str, Any] = dataclasses.field(default_factory=dict)
    """values of the source's extra columns, by name; a missing one is null"""
    size: int = 0
    """its share of the unit's size, in the measure of `Source.size`"""


@dataclasses.dataclass(frozen=True)
class LateCaption(Item):
    """Not an item of its own: the caption of a key whose item was yielded before."""


class UnitError(UserError):
    """A unit that cannot be read to its end; nothing of it is published."""

    def __init__(self, message: str, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent
        """another attempt cannot help"""


class Source(Protocol):
    """How units become items."""

    @property
    def nouns(self) -> tuple[str, str]:
        """What a unit holds and what is expected in it, for messages: ("image", "members like 0001.jpg")."""
        ...

    @property
    def columns(self) -> "Sequence[pa.Field]":
        """Extra columns of the output, nullable; the values are in `Item.columns`."""
        ...

    def read(self, unit: Unit, left_out: Counter[str]) -> Iterator[Item]:
        """Stream a unit, in the same order every time.

        Args:
            left_out: counts, by reason, what the unit holds that is in no item.

        Yields:
            one item for each key; LateCaptions for captions found after their item.

        Raises:
            UnitError: the unit cannot be read to its end; one line.
        """
        ...

    def size(self, unit: Unit) -> int | None:
        """How large a unit is, in the measure of `Item.size`; None where that is not cheap to know."""
        ...

    def describe(self) -> dict[str, Any]:
        """The settings that decide the rows, as JSON values without defaults, for the fingerprint."""
        ...
