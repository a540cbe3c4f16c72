"""Large shards in parts, so that a lost actor loses little work and the last shards are shared among many actors.

out/_parts/<stem>/<i>-of-<n>.parquet   rows of the samples with index % n == i; written atomically

When all parts are there, they are merged into the shard's Parquet file and report, with the same bytes as if learned whole.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

from pipeline.rows import Row, ShardReport
from pipeline.run.tasks import Merge, Part, split
from pipeline.sources.base import Item, LateCaption, Unit, UnitError
from pipeline.table import PromptTable


@dataclasses.dataclass(frozen=True)
class PartReport:
    """The result of one part of a shard."""

    shard: str
    part: int
    parts: int
    samples: int
    """of the whole shard"""
    keys: str
    """a hash of the shard's keys in order, so that parts of different tars are never merged"""
    ok: int
    similarity: float
    """sum over the ok rows"""
    seconds: float
    fingerprint: str
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    """members of the tar that are in no row of the whole shard, counted by reason"""
    gaps: list[int] = dataclasses.field(default_factory=list)
    """indices below the last one that no sample of the whole shard has"""
    warnings: list[str] = dataclasses.field(default_factory=list)
    """see ShardReport"""


class PartItems:
    """Yields the items of a part, and counts all items."""

    def __init__(self, part: Part, items: Iterator[Item]) -> None:
        self.part, self.items = part, items
        self.count = 0
        self.keys = hashlib.sha256()
        self._indices: set[int] = set()

    def __iter__(self) -> Iterator[Item]:
        for item in self.items:
            if not isinstance(item, LateCaption):
                self.count += 1
                self.keys.update(f"{item.index}\0{item.key}\0".encode())
                self._indices.add(item.index)
            if item.index % self.part.parts == self.part.index:
                yield item

    @property
    def gaps(self) -> list[int]:
        return [i for i in range(max(self._indices, default=0)) if i not in self._indices]


def finished_part(part: Part, table: PromptTable) -> PartReport | None:
    """The report of a finished part, or None."""
    about = table.read_metadata(_name(part))
    values = json.loads((about or {}).get(_ABOUT, b"{}"))
    if values.get("shard") != part.unit.url or values.get("fingerprint") != table.fingerprint:
        return None
    return PartReport(**values)


def part_of_whole(part: Part, table: PromptTable) -> PartReport:
    """The report of a part that is not needed because its unit is done."""
    return PartReport(part.unit.url, part.index, part.parts, 0, "", 0, 0.0, 0.0, table.fingerprint)


def publish_part(
    part: Part,
    rows: Sequence[Row],
    items: PartItems,
    left_out: Mapping[str, int],
    seconds: float,
    table: PromptTable,
    warnings: Sequence[str] = (),
) -> PartReport:
    """Write a part's rows and report as one file."""
    similarities = [row.similarity for row in rows if row.status == "ok" and row.similarity is not None]
    report = PartReport(
        shard=part.unit.url,
        part=part.index,
        parts=part.parts,
        samples=items.count,
        keys=items.keys.hexdigest(),
        ok=len(similarities),
        similarity=sum(similarities),
        seconds=seconds,
        fingerprint=table.fingerprint,
        left_out=dict(left_out),
        gaps=items.gaps,
        warnings=list(warnings),
    )
    table.write_rows(_name(part), rows, {_ABOUT: json.dumps(dataclasses.asdict(report)).encode()})
    return report


def merge_parts(merge: Merge, table: PromptTable) -> ShardReport:
    """Merge the parts of a unit into its Parquet file and report, then remove them.

    Raises:
        UnitError: parts are missing or come from different tars; all are removed.
    """
    unit, parts = merge.unit, merge.parts
    reports: list[PartReport] = []
    rows: list[list[Row]] = []
    with contextlib.suppress(FileNotFoundError):
        for part in split(unit, parts):
            if (report := finished_part(part, table)) is None:
                break
            rows.append(table.read_rows(_name(part)))
            reports.append(report)
    if whole := table.finished(unit):  # another run on the same output has merged and removed them
        return whole
    count = sum(len(part_rows) for part_rows in rows)
    if len(reports) < parts or len({r.keys for r in reports}) > 1 or count != reports[0].samples:
        table.remove(_folder(unit))
        raise UnitError(
            f"{unit.url} was replaced while its parts were learned, or parts were removed; re-run the command"
        )
    gaps, left = set(reports[0].gaps), [iter(part_rows) for part_rows in rows]
    merged = [next(left[i % parts]) for i in range(count + len(gaps)) if i not in gaps]
    warnings = list(dict.fromkeys(text for report in reports for text in report.warnings))
    whole = table.publish(unit, merged, sum(r.seconds for r in reports), reports[0].left_out, warnings)
    table.remove(_folder(unit))
    return whole


def sweep_parts(units: Sequence[Unit], table: PromptTable) -> None:
    """Remove parts of finished units left by lost runs, or by runs with another number of parts."""
    left = table.folders("_parts")
    for unit in units:
        if unit.stem in left:
            table.remove(_folder(unit))


_ABOUT = b"pez-part"  # key in the schema metadata of a Parquet file


def _folder(unit: Unit) -> str:
    return f"_parts/{unit.stem}"


def _name(part: Part) -> str:
    return f"{_folder(part.unit)}/{part.index}-of-{part.parts}.parquet"
