"""Raw rows of a table, and their keys."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class BadValue:
    """A cell that cannot be read; `what` describes it in messages."""

    what: str


@dataclasses.dataclass(frozen=True)
class TableRow:
    """The selected cells of one row."""

    cells: tuple[Any, ...] = ()
    """in the order of the selected columns; empty if the row has a reason"""
    size: int = 1
    """share of the file, see Source.size"""
    reason: str | None = None
    """why the row as a whole cannot be read"""


class RowKeys:
    """Gives each row of a table a unique key: the value of a column, or the row number, `000012`.

    Args:
        column: column with the keys; None = row numbers.
    """

    def __init__(self, column: str | None) -> None:
        self.column = column
        self._seen: dict[str, int] = {}

    def key_of(self, index: int, row: TableRow, value: Any = None) -> tuple[str, str | None]:
        """(key, reason why the row has no unique key) of the next row.

        Args:
            value: of the column.
        """
        number = f"{index:06d}"
        key, bad = number, None
        if self.column is not None:
            key, bad = _key(value, self.column) if row.reason is None else (number, None)
            if bad is None and row.reason is None and key in self._seen:
                bad = f"the key {key[:80]!r} is also that of row {self._seen[key]:06d}; expected unique keys"
            key = key if bad is None else number
            while key in self._seen:  # the key of another row looks like this row number
                key += "_"
            self._seen[key] = index
        return key, bad


def kind_of_value(value: Any) -> str:
    """The kind of a cell's value, for messages."""
    if isinstance(value, BadValue):
        return value.what
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        bytes: "bytes",
        str: "a text",
    }
    return names.get(type(value), type(value).__name__)


def _key(value: Any, column: str) -> tuple[str, str | None]:
    """(key, reason why it is not valid) of a cell."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value), None
    if isinstance(value, str) and value and len(value) <= 4096:
        return value, None
    long = "a text of more than 4096 characters"
    found = (
        "null"
        if value is None
        else "empty"
        if value == ""
        else long
        if isinstance(value, str)
        else kind_of_value(value)
    )
    return "", f"the key column {column!r} holds {found} here; expected a text or an integer"
