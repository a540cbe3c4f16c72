"""Which rows of an output its gallery shows: all, or a sample that is the same each time and reads few units."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.rows import ShardReport
from pipeline.sources.base import Unit
from pipeline.table import PromptTable

MOST_UNITS = 32
"""of which images are read, where not all rows are shown"""

UNIT = "_unit"
"""what is added to a row"""


@dataclasses.dataclass(frozen=True)
class Selection:
    """The rows that are shown, and what they are a sample of."""

    rows: list[dict[str, Any]]
    """in the order of units and rows; UNIT is the index in `reports`"""
    units: dict[int, Unit]
    """those of the rows, by that index"""
    reports: list[ShardReport]
    """of all units"""

    @property
    def total(self) -> int:
        """Rows of the output."""
        return sum(report.rows for report in self.reports)


def select_rows(table: PromptTable, shards: Sequence[Unit], sample: int) -> Selection:
    """Choose rows of the finished units.

    Args:
        shards: the finished units, as they are opened.
        sample: rows at most. Where there are more, they are of at most MOST_UNITS units, of each an equal share.

    Raises:
        DamagedError: a table cannot be read.
    """
    reports = sorted(table.reports(), key=lambda report: report.stem)
    by_stem = {unit.stem: unit for unit in shards}
    numbered = [(number, report) for number, report in enumerate(reports) if report.stem in by_stem]
    if sum(report.rows for report in reports) > sample:
        numbered = sorted(numbered, key=lambda pair: _rank(pair[1].stem))[:MOST_UNITS]
    quotas = _shares([report.rows for _, report in numbered], sample)
    rows: list[dict[str, Any]] = []
    units: dict[int, Unit] = {}
    for (number, report), quota in sorted(zip(numbered, quotas, strict=True)):
        found = _sampled(table.read(by_stem[report.stem]), quota) if quota else []
        rows += [{**row, UNIT: number} for row in found]
        units[number] = by_stem[report.stem]
    return Selection(rows, units, reports)


def _shares(sizes: Sequence[int], total: int) -> list[int]:
    """So many of each, as equal as sizes allow, `total` together if there are so many."""
    shares = [0] * len(sizes)
    left = min(total, sum(sizes))
    while left:
        open_ = [i for i, size in enumerate(sizes) if shares[i] < size]
        each = max(left // len(open_), 1)
        for i in open_:
            more = min(each, sizes[i] - shares[i], left)
            shares[i] += more
            left -= more
    return shares


def _sampled(rows: pa.Table, count: int) -> list[dict[str, Any]]:
    keys = rows["key"].to_pylist()
    if len(keys) <= count:
        return list(rows.to_pylist())
    chosen = sorted(sorted(range(len(keys)), key=lambda i: _rank(keys[i]))[:count])
    return list(rows.take(chosen).to_pylist())


def _rank(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
