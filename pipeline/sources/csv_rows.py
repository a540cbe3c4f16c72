"""Rows of a CSV file with a header, streamed in little memory; with commas, semicolons or tabs, optionally gzipped."""

import csv
from collections.abc import Iterator, Sequence

from pipeline.sources.base import Unit, UnitError
from pipeline.sources.json_lines import MAX_LINE, read_text
from pipeline.sources.table_rows import TableRow

_DELIMITERS = ",;\t|"


def read_csv(unit: Unit, columns: Sequence[str], options: Sequence[str]) -> Iterator[TableRow]:
    """Stream the rows of a file.

    Args:
        columns: columns to read.
        options: the options that name them, for messages.

    Yields:
        one row for each record; records whose length differs from the header have a reason.

    Raises:
        UnitError: not readable, truncated inside quotes, or without these columns.
    """
    lines = _Lines(unit)
    records = _records(unit, lines)
    header = next(records, [])
    for name, option in zip(columns, options, strict=True):
        if header.count(name) != 1:
            found = "no column" if name not in header else f"{header.count(name)} columns"
            names = ", ".join(map(repr, header[:20])) or "none"
            raise UnitError(f"{unit.url} has {found} {name!r}; it has {names}: name one with {option}", permanent=True)
    places = [header.index(name) for name in columns]
    for number, record in enumerate(records, 1):
        size = sum(map(len, record)) + len(record)
        if not any(record):  # a blank line
            continue
        if len(record) != len(header):
            reason = f"record {number} has {len(record)} values, and the header has {len(header)}"
            yield TableRow(size=size, reason=reason)
            continue
        yield TableRow(tuple(record[place] or None for place in places), size)
    if lines.quotes % 2:
        raise UnitError(f"{unit.url} is truncated inside a quoted value; make or copy it again")


def csv_header(unit: Unit) -> list[str]:
    """The names of a file's columns.

    Raises:
        UnitError: the file is not readable.
    """
    return next(_records(unit, _Lines(unit)), [])


class _Lines:
    """The lines of a file, including line ends; counts their quotes."""

    def __init__(self, unit: Unit) -> None:
        self.unit, self.quotes = unit, 0
        self.delimiter = ","

    def __iter__(self) -> Iterator[str]:
        rest = ""
        for text in read_text(self.unit):
            *whole, rest = (rest + text).split("\n")
            for line in whole:
                yield self._counted(line + "\n")
            if len(rest) > MAX_LINE:
                raise UnitError(f"{self.unit.url} has a line of more than {MAX_LINE} characters; expected CSV", True)
        if rest:
            yield self._counted(rest)

    def _counted(self, line: str) -> str:
        self.quotes += line.count('"')
        return line


def _records(unit: Unit, lines: _Lines) -> Iterator[list[str]]:
    csv.field_size_limit(MAX_LINE)
    iterator = iter(lines)
    first = next((line for line in iterator if line.strip()), "")
    if "\0" in first:
        raise UnitError(f"{unit.url} is not a table; expected Parquet, JSON lines or CSV", permanent=True)
    delimiter = max(_DELIMITERS, key=first.count)

    def every() -> Iterator[str]:
        yield first
        yield from iterator

    try:
        yield from csv.reader(every(), delimiter=delimiter)
    except csv.Error as error:
        raise UnitError(f"{unit.url} cannot be read as CSV ({error})", permanent=True) from error
