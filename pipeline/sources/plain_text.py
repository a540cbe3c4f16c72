"""Lines of a plain text file, each a row, streamed in little memory; optionally gzipped."""

from collections.abc import Iterator

from pipeline.sources.base import Unit, UnitError
from pipeline.sources.json_lines import MAX_LINE, read_text
from pipeline.sources.table_rows import TableRow


def read_lines(unit: Unit) -> Iterator[TableRow]:
    """Stream the lines of a file, blank ones included.

    Raises:
        UnitError: not readable, truncated, or not text.
    """
    rest = ""
    for text in read_text(unit):
        if "\0" in text:
            raise UnitError(f"{unit.url} is not text; expected one text per line", permanent=True)
        *whole, rest = (rest + text).split("\n")
        for line in whole:
            yield _row(line, 1)
        if len(rest) > MAX_LINE:
            raise UnitError(f"{unit.url} has a line of more than {MAX_LINE} characters; expected texts", permanent=True)
    if rest:
        yield _row(rest, 0)


def _row(line: str, end: int) -> TableRow:
    text = line.removesuffix("\r")
    return TableRow((text,), len(line.encode("utf-8", "replace")) + end)
