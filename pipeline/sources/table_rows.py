"""A row of a table of texts, before anything is made of it."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class BadValue:
    """A cell that cannot be read; `what` it is, for messages."""

    what: str


@dataclasses.dataclass(frozen=True)
class TableRow:
    """The cells of one row that are read."""

    text: Any = None
    key: Any = None
    size: int = 1
    """its share of the file, see Source.size"""
    reason: str | None = None
    """why the row as a whole cannot be read"""
