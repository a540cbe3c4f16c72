"""Metrics of a job for Prometheus: what the reports say, and what is in work. The runner brings the instruments.

The driver records them, so each report counts once, whatever happens to the actors. On Ray, every name gets the prefix
`ray_`, and counters the suffix `_total`; deploy/grafana.json shows them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pipeline.rows import ShardReport
from pipeline.stages.learn import Progress
from pipeline.stages.parts import PartReport
from pipeline.stages.verified_table import VerifyReport

_SECONDS = [1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0]
_SIMILARITIES = [0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0]


class Instruments(Protocol):
    """Kinds of metrics, as in `ray.util.metrics`."""

    Counter: Any
    Gauge: Any
    Histogram: Any


class JobMetrics:
    """The metrics of one job.

    Args:
        instruments: kinds of metrics.
        units: number of units to do, by stage.
    """

    def __init__(self, instruments: Instruments, units: Mapping[str, int]) -> None:
        def make(kind: Any, name: str, text: str, tags: Sequence[str] = ("stage",), **options: Any) -> Any:
            return kind(name, description=text, tag_keys=tuple(tags), **options)

        counter, gauge, histogram = instruments.Counter, instruments.Gauge, instruments.Histogram
        self.images = make(counter, "pez_images", "rows with a result")
        self.failures = make(counter, "pez_failures", "rows without one", ("stage", "status"))
        self.units = make(counter, "pez_units", "finished units")
        self.seconds = make(histogram, "pez_unit_seconds", "seconds a unit", boundaries=_SECONDS)
        self.similarity = make(histogram, "pez_unit_similarity", "mean similarity of a unit", boundaries=_SIMILARITIES)
        self.mean = make(
            gauge, "pez_mean_similarity", "mean similarity of the rows so far"
        )  # histograms have no exact sum
        self.left = make(gauge, "pez_units_left", "units that are not finished")
        self.lanes = make(gauge, "pez_lanes_busy", "searches in progress", ())
        self.memory = make(gauge, "pez_gpu_memory_bytes", "GPU memory that PyTorch holds, of all actors", ())
        self._left = dict(units)
        self._sums: dict[str, tuple[float, int]] = {}
        for stage, number in self._left.items():
            self.left.set(number, {"stage": stage})

    def report(self, report: ShardReport | PartReport) -> None:
        """Count a unit with prompts; parts count when they are merged."""
        if isinstance(report, ShardReport):
            self._count("learning", report.ok, report.failed, report.seconds, report.mean_similarity)

    def report_verified(self, report: VerifyReport) -> None:
        """Count a verified unit."""
        failed = {"not generated": report.rows - report.scored}
        self._count("verification", report.scored, failed, report.seconds, report.mean_similarity)

    def look(self, busy: Sequence[Any]) -> None:
        """Take the progress of the busy actors."""
        learning = [progress for progress in busy if isinstance(progress, Progress)]
        self.lanes.set(sum(progress.busy_lanes for progress in learning))
        self.memory.set(sum(progress.gpu_memory for progress in learning))

    def _count(
        self, stage: str, images: int, failed: Mapping[str, int], seconds: float, similarity: float | None
    ) -> None:
        tags = {"stage": stage}
        if images:  # an instrument refuses 0
            self.images.inc(images, tags)
        for status, number in failed.items():
            if number:
                self.failures.inc(number, {**tags, "status": status})
        self.units.inc(1, tags)
        self.seconds.observe(max(seconds, 1e-3), tags)
        if similarity is not None and similarity > 0:
            self.similarity.observe(similarity, tags)
        if similarity is not None and images:
            total, number = self._sums.get(stage, (0.0, 0))
            self._sums[stage] = total + similarity * images, number + images
            self.mean.set(self._sums[stage][0] / self._sums[stage][1], tags)
        self._left[stage] = max(self._left.get(stage, 0) - 1, 0)
        self.left.set(self._left[stage], tags)
