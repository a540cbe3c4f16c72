"""The progress of an export for people."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from pipeline.exports.folder import ExportReport
from pipeline.progress import JobProgress
from pipeline.stages.export import ExportProgress
from pipeline.terminal import count, duration, plain


class ExportJobProgress(JobProgress):
    """Counts exported units and rows.

    Args:
        shards: number of units of the whole job.
        earlier: reports of units exported by earlier runs.
    """

    def __init__(self, shards: int, earlier: Sequence[ExportReport], console: Console) -> None:
        super().__init__(shards, None, console)
        self.exported = list(earlier)
        self.before = len(self.exported)
        self.rows_in_work = 0

    def report_exported(self, report: ExportReport) -> None:
        """Count a finished unit."""
        self._warn(report.warnings)
        self.exported.append(report)
        self.activity, self.rows_in_work = "", 0
        self._tell()

    def look(self, busy: Sequence[Any]) -> None:
        self.rows_in_work = sum(progress.rows for progress in busy if isinstance(progress, ExportProgress))
        self._tell()

    def line(self) -> str:
        seconds = max(self.clock() - self.started, 1e-9)
        ours = self.exported[self.before :]
        rows = sum(report.rows for report in ours) + self.rows_in_work
        parts = [f"{len(self.exported)}/{self.shards} shards", count(rows, "row"), f"{rows / seconds:.1f} rows/s"]
        if self.activity:
            parts.append(f"{plain(self.activity)}, {duration(self.clock() - self.active_since)}")
        elif len(self.exported) == self.shards:
            parts.append(duration(seconds))
        elif ours:
            parts.append(f"{duration(seconds / len(ours) * (self.shards - len(self.exported)))} left")
        return "  ".join(parts)
