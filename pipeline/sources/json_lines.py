"""Rows of a file of JSON lines, one object per line, streamed in little memory; optionally gzipped."""

import codecs
import contextlib
import gzip
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.sources.base import Unit, UnitError
from pipeline.sources.encoded_text import encoding_of, without_half_characters
from pipeline.sources.first_bytes import begins_a_tar, read_head, what_it_is
from pipeline.sources.stores import unreadable
from pipeline.sources.streams import ByteStream
from pipeline.sources.table_rows import BadValue, TableRow

MAX_LINE = 16 * 2**20
"""maximum number of characters per line"""
_CHUNK = 2**20  # bytes
_LOOK = 16  # lines, at least one of which must be an object; otherwise the file is not a table
_BLANK = " \t\r\n"  # in JSON
_NAMED = 20  # columns that an error lists


OPTIONS = ("--column", "--key-column")
"""the options that name columns of texts and keys"""


def read_json_lines(unit: Unit, columns: Sequence[str], options: Sequence[str] = OPTIONS) -> Iterator[TableRow]:
    """Stream the rows of a file; blank lines are skipped.

    Args:
        columns: columns to read.
        options: the options that name them, for messages.

    Yields:
        one row for each line; lines that are not JSON objects have a reason.

    Raises:
        UnitError: not readable, truncated, not JSON lines, or none of the first rows has the columns.
    """
    look = _Look(unit, columns, options)
    rows = look.rows()
    first = list(itertools.islice(rows, _LOOK))
    look.expect_table()
    yield from first
    yield from rows


def first_names(unit: Unit) -> list[str]:
    """The names of the fields of the first objects.

    Raises:
        UnitError: not readable, or not JSON lines.
    """
    look = _Look(unit, (), ())
    for _ in itertools.islice(look.rows(), _LOOK):
        pass
    look.expect_table()
    return list(look.names)


class _Look:
    """Reads rows, and records whether they form a table with the columns."""

    def __init__(self, unit: Unit, columns: Sequence[str], options: Sequence[str]) -> None:
        self.unit, self.columns, self.options = unit, columns, options
        self.names: dict[str, None] = {}
        self.objects = 0
        self.with_column: Counter[str] = Counter()
        self.first_line: str | None = None

    def rows(self) -> Iterator[TableRow]:
        for number, line, ended in _lines(self.unit):
            self.first_line = self.first_line or line
            values, reason = _parsed(self.unit, number, line, ended)
            size = len(line or "") + 1
            if values is None:
                yield TableRow(size=size, reason=reason)
                continue
            self.objects += 1
            self.with_column.update(name for name in self.columns if name in values)
            if self.objects <= _LOOK:
                self.names.update(dict.fromkeys(values))
            yield TableRow(tuple(_cell(values.get(name)) for name in self.columns), size)

    def expect_table(self) -> None:
        """Raise UnitError if no line so far is an object, or none has the columns."""
        first = (self.first_line or "").strip()
        array = first == "[" or first.startswith("[{")
        if self.first_line is not None and (array or not self.objects):
            shown = " ".join(first.split())[:60]
            advice = "; to convert a JSON array: jq -c '.[]' FILE" if array else ""
            raise UnitError(
                f"{self.unit.url} is not a table: found {shown!r}; "
                f"expected Parquet, or JSON lines with one object per line{advice}",
                permanent=True,
            )
        for name, option in zip(self.columns, self.options, strict=False):
            if self.objects and not self.with_column[name]:
                found = ", ".join(map(repr, list(self.names)[:_NAMED])) or "none"
                raise UnitError(
                    f"{self.unit.url} has no column {name!r}; it has {found}: name one with {option}", permanent=True
                )


def _parsed(unit: Unit, number: int, line: str | None, ended: bool) -> tuple[dict[str, Any] | None, str | None]:
    """(object, None) of a line, or (None, reason)."""
    if line is None:
        return None, f"line {number} has more than {MAX_LINE} characters; expected a JSON object"
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        if not ended and _may_be_cut(line, error):
            raise UnitError(
                f"{unit.url} is truncated inside line {number} ({error.msg}); make or copy it again"
            ) from error
        return None, f"line {number} is not JSON ({error.msg}, at character {error.pos + 1}); expected an object"
    except (RecursionError, ValueError) as error:  # too deep, or a number with too many digits
        return None, f"line {number} cannot be read ({type(error).__name__}); expected a JSON object"
    if not isinstance(values, dict):
        return None, f"line {number} is not a JSON object but {type(values).__name__}; expected an object"
    return values, None


def _may_be_cut(line: str, error: json.JSONDecodeError) -> bool:
    """Whether a line begins as an object and is just incomplete."""
    return line.lstrip().startswith("{") and (error.pos >= len(line.rstrip()) or error.msg.startswith("Unterminated"))


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return without_half_characters(value)
    if isinstance(value, int | float | bool | None):
        return value
    return BadValue("a list" if isinstance(value, list) else "an object")


def _lines(unit: Unit) -> Iterator[tuple[int, str | None, bool]]:
    """(number from 1, text or None if it is too long, whether a line end follows) of each non-blank line."""
    number, pieces, length = 1, list[str](), 0

    def line() -> str | None:
        return None if length > MAX_LINE else "".join(pieces)

    for text in read_text(unit):
        *whole, last = text.split("\n")
        for piece in whole:
            length += len(piece)
            if length <= MAX_LINE:
                pieces.append(piece)
            found = line()
            if found is None or found.strip(_BLANK):
                yield number, found, True
            number, pieces, length = number + 1, [], 0
        length += len(last)
        if length <= MAX_LINE:
            pieces.append(last)
        else:
            pieces = []
    found = line()
    if found is None or found.strip(_BLANK):
        yield number, found, False


def _expect_text(unit: Unit, head: bytes, packed: bool) -> None:
    """Raise UnitError if a file with these first bytes is of another kind."""
    if head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"["):
        return
    inside = "gzip, and inside " if packed else ""
    if head.strip(b"\0") and begins_a_tar(head):
        advice = "tars of images are read by: pez caption --input TAR --output OUT"
        raise UnitError(f"{unit.url} is {inside}a tar, not a table: {advice}", permanent=True)
    if found := what_it_is(head):
        advice = "expected Parquet, or JSON lines with one object per line" if found.permanent else found.advice
        raise UnitError(f"{unit.url} is {inside}{found.what}, not a table: {advice}", found.permanent)


def read_text(unit: Unit) -> Iterator[str]:
    """Read a text file in pieces, decompressed and decoded.

    Raises:
        UnitError: not readable, truncated, or a file of another kind.
    """
    try:
        with contextlib.closing(ByteStream(unit.source)) as stream:
            head = read_head(stream)
            packed = head[:2] == b"\x1f\x8b"
        with contextlib.closing(ByteStream(unit.source)) as stream:
            file: Any = gzip.GzipFile(fileobj=stream) if packed else stream
            head = read_head(file)
            _expect_text(unit, head, packed)
            encoding = encoding_of(head)
            decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
            text = decoder.decode(head)
            yield text.removeprefix("\ufeff")
            while chunk := file.read(_CHUNK):
                yield decoder.decode(chunk)
            yield decoder.decode(b"", final=True)
    except UnitError:
        raise
    except Exception as error:  # each filesystem has its own errors
        raise unreadable(unit.source, unit.url, error) from error
