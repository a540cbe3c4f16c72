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
from pipeline.verified_table import VerifyReport
from pipeline.verify import VerifyProgress


class JobProgress:
    """Counts a job's shards and images and tells of them.

    Args:
        shards: of the whole job.
        done: that an earlier run captioned; None where the job captions none.
        every: seconds between plain lines.
        verified: shards that an earlier run verified; None where the job verifies none.
    """

    def __init__(
        self,
        shards: int,
        done: int | None,
        console: Console,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        verified: int | None = None,
    ) -> None:
        self.shards, self.console, self.every, self.clock = shards, console, every, clock
        self.captions, self.verifies = done is not None, verified is not None
        self.started, self.told = clock(), clock()
        self.done = self.earlier = done or 0
        self.images = self.failed = 0
        self.similarity = 0.0
        self.busy: list[Progress] = []
        self.parts: dict[str, Progress] = {}  # of shards that are not whole yet
        self.verified = self.verified_earlier = verified or 0
        self.first_verified = 0.0  # when
        self.painted = VerifyProgress()
        self.blanked = 0
        self.busy_verifying: list[VerifyProgress] = []
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

    def report_verified(self, report: VerifyReport) -> None:
        """A shard's prompts were compared with its pictures."""
        if self.verified == self.verified_earlier:
            self.first_verified = self.clock()
        self.verified += 1
        self.painted.images += report.rows
        self.painted.scored += report.scored
        self.painted.similarity += (report.mean_similarity or 0.0) * report.scored
        self.blanked += report.blanked
        self.busy_verifying = []
        self._tell()

    def look(self, busy: Sequence[Progress | VerifyProgress]) -> None:
        """What the actors have done of the shards in work."""
        self.busy = [p for p in busy if isinstance(p, Progress)]
        self.busy_verifying = [p for p in busy if isinstance(p, VerifyProgress)]
        self._tell()

    def note(self, line: str) -> None:
        """Something went wrong and was mended."""
        self.console.print(f"note: {plain(line)}", highlight=False, soft_wrap=True, markup=False)

    def line(self) -> str:
        """The counts, in one line."""
        seconds = max(self.clock() - self.started, 1e-9)
        parts = [*(self._captioned(seconds) if self.captions else ()), *(self._verified() if self.verifies else ())]
        if (self.verified if self.verifies else self.done) == self.shards:
            parts.append(duration(seconds))
        elif (left := self._seconds_left(seconds)) is not None:
            parts.append(f"{duration(left)} left")
        return "  ".join(parts)

    def _seconds_left(self, seconds: float) -> float | None:
        """Of the last stage, which ends the job."""
        if not self.verifies:
            ended = self.done - self.earlier
            return seconds / ended * (self.shards - self.done) if ended else None
        later = self.verified - self.verified_earlier - 1  # than the first, which may have waited for the captions
        return (self.clock() - self.first_verified) / later * (self.shards - self.verified) if later > 0 else None

    def _captioned(self, seconds: float) -> list[str]:
        unfinished = [*self.busy, *self.parts.values()]
        images = self.images + sum(p.images for p in unfinished)
        similarity = self.similarity + sum(p.similarity for p in unfinished)
        parts = [f"{self.done}/{self.shards} shards", f"{images} images"]
        if self.done < self.shards or not self.verifies:  # the clock runs on while others verify
            parts.append(f"{images / seconds:.1f} images/s")
        if images:
            parts.append(f"mean similarity {similarity / images:.3f}")
        if self.failed:
            parts.append(f"{self.failed} without a prompt")
        return parts

    def _verified(self) -> list[str]:
        every = [self.painted, *self.busy_verifying]
        images, scored = sum(p.images for p in every), sum(p.scored for p in every)
        parts = [f"verified {self.verified}/{self.shards} shards", f"{images} prompts"]
        if scored:
            parts.append(f"mean regenerated similarity {sum(p.similarity for p in every) / scored:.3f}")
        if images > scored:
            parts.append(f"{images - scored} without a picture")
        if self.blanked:
            parts.append(f"{self.blanked} pictures blanked by the safety checker")
        return parts

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
    verified = any(row.get("regeneration") for row in shown)
    if verified:
        table.add_column("regenerated", justify="right")
    captioned = any(row["caption"] for row in shown)
    if captioned:
        table.add_column("caption", style="dim", overflow="ellipsis", no_wrap=True, max_width=60)
        table.add_column("its similarity", justify="right", style="dim")
    for row in shown:
        prompt = row["prompt"] if row["status"] == "ok" else f"({row['status']}: {row['error_message']})"
        cells = [Text(plain(row["key"])), Text(plain(prompt)), _number(row["similarity"])]
        if verified:
            cells.append(_number(row["regenerated_similarity"]))
        if captioned:
            cells += [Text(plain((row["caption"] or "")[:200])), _number(row["caption_similarity"])]
        table.add_row(*cells)
    return table


def plain(text: str) -> str:
    """Text of strangers for a terminal: line breaks, escapes and other characters that do not print are spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _number(value: float | None) -> Text:
    return Text("" if value is None else f"{value:.3f}")


def duration(seconds: float) -> str:
    """Seconds as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
