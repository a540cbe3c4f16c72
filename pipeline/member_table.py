"""The images of a job with groups, in its output folder: which group each belongs to, and the sums of their features.

out/_members/<stem>.parquet    for every key of an input file: its group, or why it has none
out/_sums/<stem>.<run>.*       sums of features by group; see pipeline/sources/group_sums.py; removed when the job is done
out/_embedded/<stem>.json      counts, seconds, failures; written last, so it marks an embedded input file
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from pipeline.folder import READS_AT_ONCE, DamagedError
from pipeline.sources.base import Unit
from pipeline.sources.group_sums import SumsWriter, hash_of, run_name, sketch
from pipeline.table import PromptTable

MEMBERS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("group", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error_message", pa.string()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Member:
    """One key of an input file."""

    key: str
    group: str | None
    """None = it has none"""
    status: str
    """ok = its feature is in the sum of its group; no_group, not_finite, or a status of Item"""
    reason: str | None = None


@dataclasses.dataclass(frozen=True)
class EmbedReport:
    """The result of embedding one input file."""

    shard: str
    stem: str
    keys: int
    ok: int
    """images that are in the sum of a group"""
    failed: dict[str, int]
    """keys that are in no sum, by status"""
    runs: int
    """number of files of sums"""
    smallest: list[int]
    """a sketch of the groups, to estimate how many groups the job has"""
    seconds: float
    failures: list[dict[str, str]]
    """key and reason of the first keys that are not ok"""
    fingerprint: str
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    """see ShardReport"""
    warnings: list[str] = dataclasses.field(default_factory=list)
    """see ShardReport"""


class MemberTable:
    """The images of an output folder whose prompts are learned by group."""

    def __init__(self, prompts: PromptTable) -> None:
        self.prompts = prompts

    def sums(self, unit: Unit) -> SumsWriter:
        """Sums of the features of a unit, to be filled."""
        return SumsWriter(self.prompts, unit.stem)

    def finished(self, unit: Unit) -> EmbedReport | None:
        """The report of an embedded unit whose files are all there, or None."""
        return self._finished(unit, None)

    def reports(self, units: Sequence[Unit]) -> dict[str, EmbedReport]:
        """The reports of the embedded units, by URL."""
        there = self._there()
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            found = pool.map(lambda unit: self._finished(unit, there), units)
            return {report.shard: report for report in found if report is not None}

    def publish(
        self,
        unit: Unit,
        members: Sequence[Member],
        sums: SumsWriter,
        seconds: float,
        left_out: Mapping[str, int],
        warnings: Sequence[str],
    ) -> EmbedReport:
        """Write the last sums of a unit, its members, then its report; after a crash in between, the unit is redone.

        Raises:
            OutputError: the files cannot be written.
            UserError: a run with different settings has claimed the folder.
        """
        self.prompts.check_claim()
        runs = sums.close()
        columns = [
            [member.key for member in members],
            [unit.url] * len(members),
            [member.group for member in members],
            [member.status for member in members],
            [member.reason for member in members],
        ]
        arrays = [pa.array(values, field.type) for values, field in zip(columns, MEMBERS, strict=True)]
        self.prompts.write_table(f"_members/{unit.stem}.parquet", pa.table(arrays, schema=MEMBERS))
        bad = [member for member in members if member.status != "ok"]
        report = EmbedReport(
            shard=unit.url,
            stem=unit.stem,
            keys=len(members),
            ok=len(members) - len(bad),
            failed=dict(Counter(member.status for member in bad)),
            runs=runs,
            smallest=sketch(hash_of(member.group) for member in members if member.group is not None),
            seconds=round(seconds, 3),
            failures=[{"key": member.key, "reason": member.reason or member.status} for member in bad[:100]],
            fingerprint=self.prompts.fingerprint,
            left_out=dict(left_out),
            warnings=list(warnings),
        )
        self.prompts.put(f"_embedded/{unit.stem}.json", (json.dumps(dataclasses.asdict(report)) + "\n").encode())
        return report

    def foreign(self, units: Iterable[Unit]) -> list[str]:
        """Stems of embedded input files that are not among these units."""
        return sorted(self.prompts.names("_embedded", ".json") - {unit.stem for unit in units})

    def remove_sums(self) -> None:
        """Remove the sums, which are not needed once all groups have prompts."""
        self.prompts.remove("_sums")

    def _there(self) -> set[str]:
        """Names of files that are there, each without its extension but with its folder."""
        folder = self.prompts
        found = {f"_members/{stem}" for stem in folder.names("_members", ".parquet")}
        sums = folder.names("_sums", ".parquet") & folder.names("_sums", ".npy")
        return found | {f"_sums/{name}" for name in sums}

    def _finished(self, unit: Unit, there: set[str] | None) -> EmbedReport | None:
        try:
            values = self.prompts.read_json(f"_embedded/{unit.stem}.json")
        except DamagedError:
            return None
        if values is None:
            return None
        fields = {field.name for field in dataclasses.fields(EmbedReport)}
        try:
            report = EmbedReport(**{name: value for name, value in values.items() if name in fields})
        except TypeError:  # a field is missing
            return None
        if report.shard != unit.url or report.fingerprint != self.prompts.fingerprint:
            return None
        there = self._there() if there is None else there
        needed = [f"_members/{unit.stem}", *(f"_sums/{run_name(unit.stem, run)}" for run in range(report.runs))]
        return report if there.issuperset(needed) else None


def merged(sketches: Iterable[list[int]]) -> list[int]:
    """The sketch of all groups of several."""
    smallest: list[int] = []
    for other in sketches:
        smallest = sketch([*smallest, *other])
    return smallest
