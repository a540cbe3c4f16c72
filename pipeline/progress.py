"""A job's progress and result for people: a live line in a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Sequence
from types import TracebackType

import pyarrow as pa
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.caption import Progress
from pipeline.parts import PartReport
from pipeline.table import ShardReport


class JobProgress:
    """Counts a job's shards and images and tells of them.

    Args:
        shards: of the whole job.
        done: that an earlier run finished.
        every: seconds between plain lines.
    """

    def __init__(
        self, shards: int, done: int, console: Console, every: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.shards, self.done, self.console, self.every, self.clock = shards, done, console, every, clock
        self.started, self.told = clock(), clock()
        self.earlier = done
        self.images = self.failed = 0
        self.similarity = 0.0
        self.busy: list[Progress] = []
        self.parts: dict[str, Progress] = {}  # of shards that are not whole yet
        self.live: Live | None = None

    def __enter__(self) -> "JobProgress":
        if self.console.is_terminal:
            self.live = Live(Text(self.line()), console=self.console, refresh_per_second=4)
            self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.update(Text(self.line()))
            self.live.__exit__(kind, error, trace)
        elif kind is None:
            self.console.print(self.line(), highlight=False)

    def report(self, report: ShardReport | PartReport) -> None:
        """A shard ended, or a part of one."""
        if isinstance(report, PartReport):
            part = self.parts.setdefault(report.shard, Progress())
            part.images += report.ok
            part.similarity += report.similarity
            self.busy = []
            self._tell()
            return
        self.parts.pop(report.shard, None)
        self.done += 1
        self.images += report.ok
        self.failed += report.rows - report.ok
        self.similarity += (report.mean_similarity or 0.0) * report.ok
        self.busy = []
        self._tell()

    def look(self, busy: Sequence[Progress]) -> None:
        """What the actors have done of the shards in work."""
        self.busy = list(busy)
        self._tell()

    def note(self, line: str) -> None:
        """Something went wrong and was mended."""
        self.console.print(f"note: {line}", highlight=False, soft_wrap=True)

    def line(self) -> str:
        """The counts, in one line."""
        unfinished = [*self.busy, *self.parts.values()]
        images = self.images + sum(p.images for p in unfinished)
        similarity = self.similarity + sum(p.similarity for p in unfinished)
        seconds = max(self.clock() - self.started, 1e-9)
        parts = [f"{self.done}/{self.shards} shards", f"{images} images", f"{images / seconds:.1f} images/s"]
        if images:
            parts.append(f"mean similarity {similarity / images:.3f}")
        if self.failed:
            parts.append(f"{self.failed} without a prompt")
        ended = self.done - self.earlier
        if ended and self.done < self.shards:
            parts.append(f"{duration(seconds / ended * (self.shards - self.done))} left")
        elif self.done == self.shards:
            parts.append(f"{duration(seconds)}")
        return "  ".join(parts)

    def _tell(self) -> None:
        if self.live is not None:
            self.live.update(Text(self.line()))
        elif self.clock() - self.told >= self.every:
            self.told = self.clock()
            self.console.print(self.line(), highlight=False, soft_wrap=True)


def prompt_table(rows: pa.Table, most: int = 10) -> Table:
    """The first rows as a table of key, prompt and similarity."""
    table = Table(box=None, pad_edge=False)
    table.add_column("key", no_wrap=True)
    table.add_column("prompt")
    table.add_column("similarity", justify="right")
    shown = rows.slice(0, most).to_pylist()
    captioned = any(row["caption"] for row in shown)
    if captioned:
        table.add_column("caption", style="dim", overflow="ellipsis", no_wrap=True, max_width=60)
        table.add_column("its similarity", justify="right", style="dim")
    for row in shown:
        prompt = row["prompt"] if row["status"] == "ok" else f"({row['status']}: {row['error_message']})"
        numbers = ["" if row[n] is None else f"{row[n]:.3f}" for n in ("similarity", "caption_similarity")]
        cells = [Text(row["key"]), Text(prompt), Text(numbers[0]), Text(row["caption"] or ""), Text(numbers[1])]
        table.add_row(*cells[: len(table.columns)])
    return table


def duration(seconds: float) -> str:
    """Seconds as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
