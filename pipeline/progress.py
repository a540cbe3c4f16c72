"""A job's progress and result for people: a live line in a terminal, plain lines elsewhere."""

import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipeline.member_table import EmbedReport
from pipeline.rows import ShardReport
from pipeline.stages.learn import Progress
from pipeline.stages.parts import PartReport
from pipeline.stages.verified_table import VerifyReport
from pipeline.stages.verify import VerifyProgress
from pipeline.terminal import count, duration, plain, say, warn
from pipeline.terminal import prompt_table as prompt_table

_LOOK = 0.5  # seconds between polls of a worker in this process


class Watched(Protocol):
    """A worker of this process."""

    @property
    def progress(self) -> Any: ...


class JobProgress:
    """Counts a job's shards and images and shows the progress.

    Args:
        shards: number of shards of the whole job.
        done: shards finished by an earlier run; None if the job learns no prompts.
        every: seconds between plain lines.
        verified: shards verified by an earlier run; None if the job verifies none.
        noun: what prompts are learned for.
        embeds: the stage computes features of images, for prompts of groups, and learns no prompts.
    """

    def __init__(
        self,
        shards: int,
        done: int | None,
        console: Console,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        verified: int | None = None,
        noun: str = "image",
        embeds: bool = False,
    ) -> None:
        self.shards, self.console, self.every, self.clock = shards, console, every, clock
        self.noun, self.embeds = noun, embeds
        self.learns, self.verifies = done is not None, verified is not None
        self.started, self.printed = clock(), clock()
        self.done = self.earlier = done or 0
        self.images = 0
        self.failed: Counter[str] = Counter()  # rows without a prompt, by status
        self.similarity = 0.0
        self.reports: list[ShardReport] = []  # reports of this run
        self.place_of: dict[str, int] = {}  # in this list, by stem
        self.listeners: list[Callable[[ShardReport], None]] = []  # called with each of them
        self.busy: list[Progress] = []
        self.parts: dict[str, Progress] = {}  # of shards whose parts are not all done
        self.verified = self.verified_earlier = verified or 0
        self.verifying_since: float | None = None
        self.verified_before = self.verified  # at that time; excluded from the pace
        self.generated = VerifyProgress()
        self.blanked = 0
        self.busy_verifying: list[VerifyProgress] = []
        self.activity = ""  # what happens while there is nothing to count
        self.active_since = clock()
        self.learning_since: float | None = None
        self.watched: Watched | None = None
        self.live: Live | None = None
        self.lock = threading.RLock()
        self.ended = threading.Event()
        self.looking = threading.Thread(target=self._look_on, name="progress", daemon=True)

    def __enter__(self) -> "JobProgress":
        if self.console.is_terminal:
            self.live = Live(console=self.console, refresh_per_second=4, get_renderable=lambda: Text(self.line()))
            self.live.__enter__()
        self.looking.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        self.looking.join()
        self.activity = ""
        if self.live is not None:
            self.live.__exit__(kind, error, trace)
        elif kind is None:
            say(self.console, self.line())

    def doing(self, activity: str) -> None:
        """Show an activity without a count, such as loading a model."""
        self.activity, self.active_since = activity, self.clock()
        if self.live is None:
            say(self.console, plain(activity))

    def watch(self, worker: Watched | None) -> None:
        """Poll a worker of this process."""
        self.watched, self.activity = worker, ""

    def _look_on(self) -> None:
        while not self.ended.wait(_LOOK):
            worker = self.watched
            if worker is not None:
                self.look([worker.progress])
            else:
                self._tell()

    def report(self, report: ShardReport | PartReport) -> None:
        """Count a finished shard or part."""
        self._warn(report.warnings)
        self.activity = ""
        if self.learning_since is None:
            self.learning_since = self.started
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
        self.failed.update(report.failed)
        self.place_of[report.stem] = len(self.reports)
        self.reports.append(report)
        self.similarity += (report.mean_similarity or 0.0) * report.ok
        self.busy = []
        for listen in self.listeners:
            listen(report)
        self._tell()

    def report_verified(self, report: VerifyReport) -> None:
        """Count a verified shard."""
        self._warn(report.warnings)
        self.activity = ""
        self.verified += 1
        if self.verifying_since is None:  # it may have waited for prompts
            self.verifying_since, self.verified_before = self.clock(), self.verified
        self.generated.images += report.rows
        self.generated.scored += report.scored
        self.generated.similarity += (report.mean_similarity or 0.0) * report.scored
        self.blanked += report.blanked
        self.busy_verifying = []
        self._count_chosen(report)
        self._tell()

    def _count_chosen(self, report: VerifyReport) -> None:
        """Replace the mean similarity of a shard's learned prompts by that of the published ones."""
        place = self.place_of.get(report.stem)
        if report.prompt_similarity is None or place is None:  # or an earlier run has learned them
            return
        learned = self.reports[place]
        self.similarity += (report.prompt_similarity - (learned.mean_similarity or 0.0)) * learned.ok
        self.reports[place] = dataclasses.replace(learned, mean_similarity=report.prompt_similarity)

    def look(self, busy: Sequence[Progress | VerifyProgress]) -> None:
        """Take the progress of the actors on shards in progress."""
        self.busy = [p for p in busy if isinstance(p, Progress)]
        self.busy_verifying = [p for p in busy if isinstance(p, VerifyProgress)]
        if busy:
            self.activity = ""
        if self.verifying_since is None and self.busy_verifying:
            self.verifying_since = self.clock()
        if self.learning_since is None and any(p.learning for p in self.busy):
            self.learning_since = self.clock()
        self._tell()

    def _warn(self, texts: Sequence[str]) -> None:
        """Print the warnings of a worker, which may be in another process."""
        for text in texts:
            warn(text)

    def note(self, line: str) -> None:
        """Show a problem that was handled."""
        say(self.console, f"note: {plain(line)}")

    def line(self) -> str:
        """The counts, in one line."""
        seconds = max(self.clock() - self.started, 1e-9)
        learned = self._embedded if self.embeds else self._learned
        parts = [*(learned(seconds) if self.learns else ()), *(self._verified() if self.verifies else ())]
        if self.activity:
            parts.append(f"{plain(self.activity)}, {duration(self.clock() - self.active_since)}")
        elif (self.verified if self.verifies else self.done) == self.shards:
            parts.append(duration(seconds))
        elif (left := self._seconds_left()) is not None:
            parts.append(f"{duration(left)} left")
        return "  ".join(parts)

    def _seconds_left(self) -> float | None:
        """Estimated seconds until the last stage is done."""
        if self.verifies:
            if self.verifying_since is None:
                return None
            begun = sum(p.images / p.of for p in self.busy_verifying if p.of)
            done = self.verified - self.verified_before + begun
            return (
                (self.clock() - self.verifying_since) / done * (self.shards - self.verified - begun) if done else None
            )
        ended = self.done - self.earlier
        begun = sum(p.shards_done for p in self.busy)
        if self.learning_since is None or not ended + begun:
            return None
        return (self.clock() - self.learning_since) / (ended + begun) * (self.shards - self.done - begun)

    def _learned(self, seconds: float) -> list[str]:
        unfinished = [*self.busy, *self.parts.values()]
        images = self.images + sum(p.images for p in unfinished)
        similarity = self.similarity + sum(p.similarity for p in unfinished)
        parts = [f"{self.done}/{self.shards} shards", count(images, self.noun)]
        if self.done < self.shards or not self.verifies:  # while verifying, the rate would only fall
            parts.append(f"{images / seconds:.1f} {self.noun}s/s")
        if images:
            parts.append(f"mean similarity {similarity / images:.3f}")
        if self.failed:
            by_status = ", ".join(f"{status} {number}" for status, number in self.failed.most_common())
            parts.append(f"{self.failed.total()} without a prompt ({by_status})")
        learning = sum(p.learning for p in self.busy)
        if learning:
            step = sum(p.steps for p in self.busy) // learning
            parts.append(f"step {step} of {max(p.of for p in self.busy)}")
        elif self.busy and not any(p.images for p in self.busy):
            parts.append(f"reading {self.noun}s")
        if memory := sum(p.gpu_memory for p in self.busy):
            lanes = sum(p.busy_lanes for p in self.busy)
            parts.append(f"{lanes} lanes busy, {memory / 2**30:.0f} GiB of GPU memory")
        return parts

    def report_embedded(self, report: EmbedReport) -> None:
        """Count a shard whose images are embedded."""
        self._warn(report.warnings)
        self.activity = ""
        self.learning_since = self.learning_since or self.started
        self.done += 1
        self.images += report.ok
        self.failed.update(report.failed)
        self.busy = []
        self._tell()

    def _embedded(self, seconds: float) -> list[str]:
        images = self.images + sum(p.images for p in self.busy)
        parts = [
            f"embedded {self.done}/{self.shards} shards",
            count(images, "image"),
            f"{images / seconds:.1f} images/s",
        ]
        if self.failed:
            by_status = ", ".join(f"{status} {number}" for status, number in self.failed.most_common())
            parts.append(f"{self.failed.total()} left out of the groups ({by_status})")
        return parts

    def _verified(self) -> list[str]:
        every = [self.generated, *self.busy_verifying]
        images, scored = sum(p.images for p in every), sum(p.scored for p in every)
        parts = [f"verified {self.verified}/{self.shards} shards", f"{images} prompts"]
        if scored:
            parts.append(f"mean regenerated similarity {sum(p.similarity for p in every) / scored:.3f}")
        if images > scored:
            parts.append(f"{images - scored} without an image")
        if busy := [p for p in self.busy_verifying if p.of]:
            parts.append(f"{sum(p.images for p in busy)} of {sum(p.of for p in busy)} in progress")
        if self.blanked:
            parts.append(f"{count(self.blanked, 'image')} blanked by the safety checker")
        return parts

    def _tell(self) -> None:
        with self.lock:  # called from the polling thread and the working thread
            if self.live is None and self.clock() - self.printed >= self.every:
                self.printed = self.clock()
                say(self.console, self.line())
