"""Tables of texts as a source: Parquet, JSON lines, CSV or plain text; each row is one item with a text to shorten."""

import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pez.errors import UserError
from pipeline.sources.base import Item, Unit, UnitError
from pipeline.sources.csv_rows import read_csv
from pipeline.sources.first_bytes import read_head
from pipeline.sources.json_lines import OPTIONS, read_json_lines
from pipeline.sources.parquet_rows import read_parquet
from pipeline.sources.plain_text import read_lines
from pipeline.sources.stores import unreadable
from pipeline.sources.streams import ByteStream
from pipeline.sources.table_rows import BadValue, RowKeys, TableRow, kind_of_value

if TYPE_CHECKING:
    import pyarrow as pa

MAX_TEXT_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class TextSource:
    """Tables with a column of texts: Parquet, JSON lines with one object per line, CSV, or plain text with one text per line.

    Args:
        column: column with the texts; plain text has none.
        key_column: column with the keys, texts or integers; None = the row number, `000012`.

    Names that end with .csv, .tsv or .txt, also with .gz, say what a file is; others are detected from the bytes. Every row is
    one item; a row without a usable text or key has a status and a reason. Rows with a missing or repeated key get their row
    number as key.
    """

    column: str
    key_column: str | None = None

    def __post_init__(self) -> None:
        for name in ("column", "key_column"):
            if (value := getattr(self, name)) is not None and not value.strip():
                raise UserError(f"{name} is empty; expected the name of a column")

    @property
    def nouns(self) -> tuple[str, str]:
        """See Source."""
        return "row", f"texts in the column {self.column!r}"

    @property
    def columns(self) -> "Sequence[pa.Field]":
        """See Source."""
        import pyarrow as pa

        return (pa.field("text", pa.string()),)

    def read(self, unit: Unit, left_out: Counter[str] | None = None) -> Iterator[Item]:
        """Stream a table, see Source; nothing is left out.

        Raises:
            UnitError: not readable, not a table, damaged or truncated, or without the columns.
        """
        keys = RowKeys(self.key_column)
        for index, row in enumerate(self._rows(unit)):
            yield self._item(index, row, keys)

    def _rows(self, unit: Unit) -> Iterator[TableRow]:
        columns = [self.column] if self.key_column is None else [self.column, self.key_column]
        if self._is_parquet(unit):
            return read_parquet(unit, columns)
        name = unit.url.lower().removesuffix(".gz")
        if name.endswith((".csv", ".tsv")):
            return read_csv(unit, columns, OPTIONS[: len(columns)])
        if not name.endswith(".txt"):
            return read_json_lines(unit, columns)
        if self.key_column is not None:
            raise UnitError(f"{unit.url} is plain text, which has no columns; omit --key-column", permanent=True)
        return read_lines(unit)

    def size(self, unit: Unit) -> int | None:
        """Bytes of a local file of text, or rows of a local Parquet file."""
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
        """Whether a file is Parquet."""
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
        original = value if isinstance(value, str) and len(value) <= MAX_TEXT_BYTES else None
        return Item(index, key, None, text, None, status, reason, {"text": original}, row.size)


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
