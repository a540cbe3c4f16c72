"""Terminal output: untrusted text made harmless, tables that fit the screen, output errors that never end a job."""

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

_WIDTH_OF_FILES = 160  # columns, if output is not a terminal and COLUMNS is not set
_GAP = 2  # columns between two columns of a table


def open_console() -> Console:
    """The console of a command."""
    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Console(width=None if known else _WIDTH_OF_FILES)


def say(console: Console, line: str, style: str | None = None) -> None:
    """Print a line literally: no markup, no highlighting, no wrapping."""
    console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)


def plain(text: str) -> str:
    """Make untrusted text safe for a terminal: line breaks, escapes and other unprintable characters are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def encodable(text: str, encoding: str) -> str:
    """Escape characters that an encoding lacks, as Python's backslashreplace does."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


def count(number: int, noun: str) -> str:
    """`1 shard`, `2 shards`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """Format a duration for people."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Activity:
    """Shows what happens before there is anything to count: a spinner in a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, first: str) -> None:
        self.console, self.first = console, first
        self.status = console.status(Text(first)) if console.is_terminal else None

    def __enter__(self) -> "Activity":
        if self.status:
            self.status.start()
        else:
            say(self.console, plain(self.first))
        return self

    def __exit__(self, *_: object) -> None:
        if self.status:
            self.status.stop()

    def counted(self, doing: str, of: int, every: float = 10.0) -> Callable[[], None]:
        """Start an activity of `of` steps; returns a function to call after each step."""
        self.now(doing)
        start = printed = time.monotonic()
        done = 0

        def step() -> None:
            nonlocal done, printed
            done += 1
            now = time.monotonic()
            if now - printed >= (0.2 if self.status else every):
                printed = now
                left = duration((now - start) / done * max(of - done, 0))
                self.now(f"{doing}: step {done} of {max(of, done)}, {left} left")

        return step

    def now(self, doing: str) -> None:
        """Show another activity."""
        if self.status:
            self.status.update(Text(plain(doing)))
        else:
            say(self.console, plain(doing))


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a `FittedTable`.

    Args:
        role: a number is never shortened; a text keeps its width if possible, and wraps. A name loses its middle, because its
            end is often informative. An aside loses its end, or the whole column.
    """

    title: str
    role: Literal["number", "text", "name", "aside"] = "text"
    dim: bool = False


class FittedTable:
    """A table that fits the width of its console and keeps the text readable.

    Args:
        columns: one of them is a text.
        rows: lists of cells, in the order of the columns.
    """

    _NAME, _TEXT, _ASIDE = 12, 30, 16  # minimum widths
    _WIDEST_NAME, _WIDEST_TEXT, _WIDEST_ASIDE = 40, 80, 60  # widths to fill before any column gets more

    def __init__(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        self.columns, self.rows = list(columns), [[plain(cell) for cell in row] for row in rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = [[encodable(cell, options.encoding) for cell in row] for row in self.rows]
        widths = self._widths(rows, options.max_width)
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
        shown = [i for i, width in enumerate(widths) if width]
        ellipsis = "..." if options.ascii_only else "…"
        for i in shown:
            column = self.columns[i]
            table.add_column(
                Text(column.title),
                width=widths[i],
                justify="right" if column.role == "number" else "left",
                style="dim" if column.dim else None,
                overflow="fold",
            )
        for row in rows:
            table.add_row(*(Text(_cut(row[i], widths[i], self.columns[i].role, ellipsis)) for i in shown))
        yield table

    def _widths(self, rows: list[list[str]], room: int) -> list[int]:
        """The width of each column; 0 = hidden."""
        roles = [column.role for column in self.columns]
        wanted = [max([cell_len(c.title), *(cell_len(row[i]) for row in rows)]) for i, c in enumerate(self.columns)]
        limits = {"text": self._WIDEST_TEXT, "name": self._WIDEST_NAME, "aside": self._WIDEST_ASIDE}
        least = {"text": self._TEXT, "name": self._NAME, "aside": self._ASIDE}
        shown = list(range(len(roles)))

        def needed() -> int:
            return sum(min(wanted[i], least.get(roles[i], wanted[i])) for i in shown) + _GAP * (len(shown) - 1)

        for i in reversed(shown[:]):  # drop from the right; keep text, name and one number
            is_first_number = roles[i] == "number" and i == roles.index("number")
            if needed() > room and roles[i] in ("number", "aside") and not is_first_number:
                shown.remove(i)
        widths = [min(w, least.get(roles[i], w)) if i in shown else 0 for i, w in enumerate(wanted)]
        left = room - sum(widths) - _GAP * (len(shown) - 1)
        for role, limit in [*limits.items(), ("text", room)]:
            for i in shown:
                if roles[i] == role:
                    more = max(0, min(min(wanted[i], limit) - widths[i], left))
                    widths[i], left = widths[i] + more, left - more
        for i in shown:  # not enough room for the minimum widths
            if left < 0 and roles[i] in ("name", "text"):
                less = min(-left, max(widths[i] - 8, 0))
                widths[i], left = widths[i] - less, left + less
        return widths


def _cut(text: str, width: int, role: str, ellipsis: str) -> str:
    """Shorten a name in the middle and an aside at the end; leave a text as it is."""
    if role == "text" or cell_len(text) <= width:
        return text
    room = max(width - len(ellipsis), 0)
    if role != "name":
        return set_cell_size(text, room).rstrip() + ellipsis
    head = room // 2
    tail, used = "", 0
    for character in reversed(text):
        used += cell_len(character)
        if used > room - head:
            break
        tail = character + tail
    return set_cell_size(text, head).rstrip() + ellipsis + tail


def prompt_table(rows: Any, limit: int = 10) -> FittedTable:
    """The first rows of a shard (a pyarrow table) as a table of key, prompt and similarity."""
    shown = rows.slice(0, limit).to_pylist()
    columns = [Column("key", "name"), Column("prompt"), Column("similarity", "number")]
    verified = any(row.get("regenerated_similarity") is not None or row.get("regeneration") for row in shown)
    captioned = any(row["caption"] for row in shown)
    if verified:
        columns.append(Column("regenerated", "number"))
    if captioned:
        columns += [Column("caption", "aside", dim=True), Column("its similarity", "number", dim=True)]
    cells = []
    for row in shown:
        prompt = row["prompt"] if row["status"] == "ok" else f"({row['status']}: {row['error_message']})"
        line = [row["key"], prompt, _number(row["similarity"])]
        if verified:
            line.append(_number(row["regenerated_similarity"]))
        if captioned:
            line += [(row["caption"] or "")[:200], _number(row["caption_similarity"])]
        cells.append(line)
    return FittedTable(columns, cells)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


class Output:
    """A stream that drops what cannot be written, so that a closed pipe or a full disk never ends a job."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                # Buffered text would fail again when Python flushes at exit, and change the exit status.
                with contextlib.suppress(OSError, ValueError):
                    nowhere = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(nowhere, self._stream.fileno())
                    os.close(nowhere)


def harden_output() -> None:
    """Make sure that printing never ends the process: unencodable characters are escaped, failed writes dropped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, Output):
            continue
        if stream is None:  # closed by the parent, as with `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        if stream is getattr(sys, f"__{name}__"):  # not replaced by a test or a notebook
            setattr(sys, name, Output(stream))


_warned: set[str] = set()


def warn(text: str) -> None:
    """Print a warning; each text once per command."""
    if text not in _warned:
        _warned.add(text)
        print(f"warning: {plain(text)}", file=sys.stderr)


def forget_warnings() -> None:
    """Reset at the start of a command."""
    _warned.clear()
