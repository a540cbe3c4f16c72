"""The progress of a sweep of `pez classify` for people."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from pipeline.progress import JobProgress
from pipeline.rows import ShardReport
from pipeline.stages.classify import SearchProgress
from pipeline.terminal import duration, plain


class ClassifyProgress(JobProgress):
    """Counts finished units, and the steps of those in work.

    Args:
        units: of the whole job.
        earlier: units finished by earlier runs.
    """

    def __init__(self, units: int, earlier: int, console: Console) -> None:
        super().__init__(units, None, console)
        self.finished = self.before = earlier
        self.searching: list[SearchProgress] = []

    def report_classified(self, report: ShardReport) -> None:
        """Count a finished unit."""
        self._warn(report.warnings)
        self.finished += 1
        self.activity, self.searching = "", []
        self._tell()

    def look(self, busy: Sequence[Any]) -> None:
        self.searching = [progress for progress in busy if isinstance(progress, SearchProgress) and progress.unit]
        if self.searching:
            self.activity = ""
        self._tell()

    def line(self) -> str:
        seconds = max(self.clock() - self.started, 1e-9)
        parts = [f"{self.finished}/{self.shards} units"]
        if self.activity:
            parts.append(f"{plain(self.activity)}, {duration(self.clock() - self.active_since)}")
        for one in self.searching[:2]:
            best = f", held-out accuracy {one.accuracy:.3f}" if one.accuracy else ""
            parts.append(f"{plain(one.unit)}: step {one.step} of {one.steps}{best}")
        parts.append(duration(seconds))
        return "  ".join(parts)
