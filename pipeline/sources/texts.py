"""Tables of texts as a source: Parquet or JSON lines; each row is one item with a text to shorten."""

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
from pipeline.sources.table_rows import BadValue, RowKeys, TableRow, kind_of_value

MAX_TEXT_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class TextSource:
    """Tables with a column of texts: Parquet, or JSON lines with one object per line, optionally gzipped.

    Args:
        column: column with the texts.
        key_column: column with the keys, texts or integers; None = the row number, `000012`.

    The kind of a file is detected from its bytes, not its name. Every row is one item; a row without a usable text or key has
    a status and a reason. Rows with a missing or repeated key get their row number as key.
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
            UnitError: not readable, not a table, damaged or truncated, or without the columns.
        """
        columns = [self.column] if self.key_column is None else [self.column, self.key_column]
        rows = read_parquet(unit, columns) if self._is_parquet(unit) else read_json_lines(unit, columns)
        keys = RowKeys(self.key_column)
        for index, row in enumerate(rows):
            yield self._item(index, row, keys)

    def size(self, unit: Unit) -> int | None:
        """Bytes of a local file of JSON lines, or rows of a local Parquet file."""
        if "://" in unit.source:
            return None
        with contextlib.suppress(OSError, ValueError):  # `read` reports the problem
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
        """Whether a file is Parquet; otherwise it may be JSON lines."""
        try:
            with contextlib.closing(ByteStream(unit.source)) as stream:
                return read_head(stream)[:4] == b"PAR1"
        except Exception as error:  # each filesystem has its own errors
            raise unreadable(unit.source, unit.url, error) from error

    def _item(self, index: int, row: TableRow, keys: RowKeys) -> Item:
        value, *rest = row.cells or (None,)
        key, bad_key = keys.key_of(index, row, rest[0] if rest else None)
        text, status, reason = _text(value, self.column)
        if row.reason is not None:
            text, status, reason = None, "bad_text", row.reason
        elif bad_key is not None:
            text, status, reason = None, "bad_key", bad_key
        caption = value if isinstance(value, str) and len(value) <= MAX_TEXT_BYTES else None
        return Item(index, key, None, text, caption, status, reason, size=row.size)


def _text(value: Any, column: str) -> tuple[str | None, str, str | None]:
    """(text, status, reason) of a cell."""
    if value is None or (isinstance(value, str) and not value.strip()):
        found = "null" if value is None else "empty"
        return None, "no_text", f"the column {column!r} is {found} here; expected a text"
    if isinstance(value, BadValue):
        return None, "bad_text", f"the column {column!r} holds {value.what} here; expected a text"
    if not isinstance(value, str):
        return None, "bad_text", f"the column {column!r} holds {kind_of_value(value)} here; expected a text"
    if len(value) > MAX_TEXT_BYTES or len(value.encode()) > MAX_TEXT_BYTES:
        return None, "bad_text", f"a text of more than {MAX_TEXT_BYTES} bytes; expected a prompt"
    return value, "ok", None
