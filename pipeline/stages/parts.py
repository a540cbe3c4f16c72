"""A large shard in parts, so that a lost actor loses little and the last shards are shared among many.

out/_parts/<stem>/<i>-of-<n>.parquet   rows of the samples whose index leaves i when divided by n; written in one step

When all parts are there they become the shard's Parquet and report, the same bytes as of a shard captioned whole.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

from pipeline.rows import Row, ShardReport
from pipeline.sources.base import Item, LateCaption, Unit, UnitError
from pipeline.table import PromptTable


@dataclasses.dataclass(frozen=True)
class PartReport:
    """What became of one part of a shard."""

    shard: str
    part: int
    parts: int
    samples: int
    """of the whole shard"""
    keys: str
    """a hash of the shard's keys in order: parts of different tars do not make a shard"""
    ok: int
    similarity: float
    """sum over the rows that are ok"""
    seconds: float
    fingerprint: str
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    """members of the tar that are in no row of the whole shard"""
    gaps: list[int] = dataclasses.field(default_factory=list)
    """numbers below the last sample's that no sample of the whole shard has"""
    warnings: list[str] = dataclasses.field(default_factory=list)
    """see ShardReport"""


class PartSamples:
    """Passes a part's samples on and takes note of all the others."""

    def __init__(self, shard: Unit, samples: Iterator[Item]) -> None:
        self.shard, self.samples = shard, samples
        self.count = 0
        self.keys = hashlib.sha256()
        self._indices: set[int] = set()

    def __iter__(self) -> Iterator[Item]:
        for sample in self.samples:
            if not isinstance(sample, LateCaption):
                self.count += 1
                self.keys.update(f"{sample.index}\0{sample.key}\0".encode())
                self._indices.add(sample.index)
            if sample.index % self.shard.parts == self.shard.part:
                yield sample

    @property
    def gaps(self) -> list[int]:
        return [i for i in range(max(self._indices, default=0)) if i not in self._indices]


def split_shard(shard: Unit, parts: int) -> list[Unit]:
    """A shard as so many parts; one is the shard itself."""
    return [dataclasses.replace(shard, part=i, parts=parts) for i in range(parts)] if parts > 1 else [shard]


def finished_part(part: Unit, table: PromptTable) -> PartReport | None:
    """The report of a part that is done, or None."""
    about = table.read_metadata(_name(part))
    values = json.loads((about or {}).get(_ABOUT, b"{}"))
    if values.get("shard") != part.url or values.get("fingerprint") != table.fingerprint:
        return None
    return PartReport(**values)


def part_of_whole(part: Unit, table: PromptTable) -> PartReport:
    """The report of a part that is not needed, as its shard is done."""
    assert part.part is not None
    return PartReport(part.url, part.part, part.parts, 0, "", 0, 0.0, 0.0, table.fingerprint)


def publish_part(
    part: Unit,
    rows: Sequence[Row],
    samples: PartSamples,
    left_out: Mapping[str, int],
    seconds: float,
    table: PromptTable,
    warnings: Sequence[str] = (),
) -> PartReport:
    """Write a part's rows and report as one file."""
    assert part.part is not None
    similarities = [row.similarity for row in rows if row.status == "ok" and row.similarity is not None]
    report = PartReport(
        shard=part.url,
        part=part.part,
        parts=part.parts,
        samples=samples.count,
        keys=samples.keys.hexdigest(),
        ok=len(similarities),
        similarity=sum(similarities),
        seconds=seconds,
        fingerprint=table.fingerprint,
        left_out=dict(left_out),
        gaps=samples.gaps,
        warnings=list(warnings),
    )
    table.write_rows(_name(part), rows, {_ABOUT: json.dumps(dataclasses.asdict(report)).encode()})
    return report


def merge_parts(shard: Unit, table: PromptTable) -> ShardReport:
    """Make the shard's Parquet and report of its parts, then remove them.

    Raises:
        UnitError: the parts are not of one tar, or not all there; none of them is kept then.
    """
    reports: list[PartReport] = []
    rows: list[list[Row]] = []
    with contextlib.suppress(FileNotFoundError):
        for part in split_shard(shard, shard.parts):
            if (report := finished_part(part, table)) is None:
                break
            rows.append(table.read_rows(_name(part)))
            reports.append(report)
    if whole := table.finished(shard):  # another run on the same output has just merged and removed them
        return whole
    count = sum(len(part_rows) for part_rows in rows)
    if len(reports) < shard.parts or len({r.keys for r in reports}) > 1 or count != reports[0].samples:
        table.remove(_folder(shard))
        raise UnitError(f"{shard.url} was replaced while its parts were captioned, or parts were removed; try it again")
    gaps, left = set(reports[0].gaps), [iter(part_rows) for part_rows in rows]
    merged = [next(left[i % shard.parts]) for i in range(count + len(gaps)) if i not in gaps]
    warnings = list(dict.fromkeys(text for report in reports for text in report.warnings))
    whole = table.publish(shard, merged, sum(r.seconds for r in reports), reports[0].left_out, warnings)
    table.remove(_folder(shard))
    return whole


def sweep_parts(shards: Sequence[Unit], table: PromptTable) -> None:
    """Remove what other divisions and lost runs left of finished shards."""
    left = table.folders("_parts")
    for shard in shards:
        if shard.stem in left:
            table.remove(_folder(shard))


_ABOUT = b"pez-part"  # of a Parquet's schema metadata


def _folder(shard: Unit) -> str:
    return f"_parts/{shard.stem}"


def _name(part: Unit) -> str:
    return f"{_folder(part)}/{part.part}-of-{part.parts}.parquet"
