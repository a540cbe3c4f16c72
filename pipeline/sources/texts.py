"""Tables of texts as a source: Parquet or JSON lines, one item for each row, whose text is to be shortened."""

import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pez.errors import UserError
from pipeline.sources.base import Item, Unit
from pipeline.sources.first_bytes import read_head
from pipeline.sources.json_lines import read_json_lines
from pipeline.sources.parquet_rows import read_parquet
from pipeline.sources.stores import unreadable
from pipeline.sources.streams import ByteStream
from pipeline.sources.table_rows import BadValue, TableRow

MAX_TEXT_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class TextSource:
    """Tables with a column of texts: Parquet, or JSON lines with one object a line, compressed with gzip or not.

    Args:
        column: holds the texts.
        key_column: holds the keys, texts or whole numbers; None = the key is the number of the row, `000012`.

    The bytes of a file decide what it is, and not its name. Every row is one item: a row without a usable text or key has a
    status and the reason. Rows without a key, and rows whose key was there before, are keyed by their number.
    """

    column: str
    key_column: str | None = None

    columns = ()

    def __post_init__(self) -> None:
        for name in ("column", "key_column"):
            if (value := getattr(self, name)) is not None and not value.strip():
                raise UserError(f"{name} is empty; expected the name of a column")

    @property
    def nouns(self) -> tuple[str, str]:
        """See Source."""
        return "row", f"texts in the column {self.column!r}"

    def read(self, unit: Unit, left_out: Counter[str] | None = None) -> Iterator[Item]:
        """Stream a table, see Source; nothing is left out.

        Raises:
            UnitError: not readable, no table, damaged or cut short, or without the columns.
        """
        columns = [self.column] if self.key_column is None else [self.column, self.key_column]
        rows = read_parquet(unit, columns) if self._is_parquet(unit) else read_json_lines(unit, columns)
        seen: dict[str, int] = {}
        for index, row in enumerate(rows):
            yield self._item(index, row, seen)

    def size(self, unit: Unit) -> int | None:
        """Bytes of a local file of JSON lines; rows of a local Parquet file."""
        if "://" in unit.source:
            return None
        with contextlib.suppress(OSError, ValueError):  # reading it says what is wrong
            if self._is_parquet(unit):
                import pyarrow.parquet as pq

                return int(pq.read_metadata(unit.source).num_rows)
            if not unit.source.lower().endswith(".gz"):
                return os.stat(unit.source).st_size
        return None

    def describe(self) -> dict[str, Any]:
        """See Source."""
        described = {"kind": "texts", "column": self.column}
        return described if self.key_column is None else {**described, "key_column": self.key_column}

    def _is_parquet(self, unit: Unit) -> bool:
        """True for Parquet, False for what may be JSON lines."""
        try:
            with contextlib.closing(ByteStream(unit.source)) as stream:
                return read_head(stream)[:4] == b"PAR1"
        except Exception as error:  # each filesystem has its own errors
            raise unreadable(unit.source, unit.url, error) from error

    def _item(self, index: int, row: TableRow, seen: dict[str, int]) -> Item:
        number = f"{index:06d}"
        key, bad_key = number, None
        if self.key_column is not None:
            key, bad_key = _key(row.key, self.key_column) if row.reason is None else (number, None)
            if bad_key is None and row.reason is None and key in seen:
                bad_key = f"the key {key[:80]!r} is that of row {seen[key]:06d}; expected a key of its own"
            key = key if bad_key is None else number
            while key in seen:  # another row's key looks like the number of this one
                key += "_"
            seen[key] = index
        text, status, reason = _text(row.text, self.column)
        if row.reason is not None:
            text, status, reason = None, "bad_text", row.reason
        elif bad_key is not None:
            text, status, reason = None, "bad_key", bad_key
        caption = row.text if isinstance(row.text, str) and len(row.text) <= MAX_TEXT_BYTES else None
        return Item(index, key, None, text, caption, status, reason, size=row.size)


def _text(value: Any, column: str) -> tuple[str | None, str, str | None]:
    """(text, status, reason) of a cell."""
    if value is None or (isinstance(value, str) and not value.strip()):
        found = "null" if value is None else "empty"
        return None, "no_text", f"the column {column!r} is {found} here; expected a text"
    if isinstance(value, BadValue):
        return None, "bad_text", f"the column {column!r} holds {value.what} here; expected a text"
    if not isinstance(value, str):
        return None, "bad_text", f"the column {column!r} holds {_kind(value)} here; expected a text"
    if len(value) > MAX_TEXT_BYTES or len(value.encode()) > MAX_TEXT_BYTES:
        return None, "bad_text", f"a text of more than {MAX_TEXT_BYTES} bytes; expected a prompt"
    return value, "ok", None


def _key(value: Any, column: str) -> tuple[str, str | None]:
    """(key, reason why it is none) of a cell."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value), None
    if isinstance(value, str) and value and len(value) <= 4096:
        return value, None
    found = "null" if value is None else "empty" if value == "" else _kind(value)
    return "", f"the key column {column!r} holds {found} here; expected a text or a whole number"


def _kind(value: Any) -> str:
    if isinstance(value, BadValue):
        return value.what
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        bytes: "bytes",
    }
    return (
        "a text of more than 4096 characters"
        if isinstance(value, str)
        else names.get(type(value), type(value).__name__)
    )
