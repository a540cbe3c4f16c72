"""An exported folder: the files that trainers read, and nothing else; what the job needs is beside it.

to/...                       the files of the format
to.pez/_export.json          the settings; runs with other settings are refused
to.pez/_exported/<stem>.json written after the files of a unit; marks it as finished
to.pez/_SUCCESS              every unit is done
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pez.errors import UserError
from pipeline.description import chosen, differences, fingerprint
from pipeline.errors import OutputError
from pipeline.exports.settings import ExportSettings
from pipeline.folder import READS_AT_ONCE, DamagedError, OutputFolder
from pipeline.sources.base import Unit
from pipeline.table import PromptTable


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """The result for one unit."""

    shard: str
    stem: str
    rows: int
    """exported rows"""
    left_out: dict[str, int]
    """other rows, and members of tars, by reason"""
    similarity: float
    """sum over the exported rows"""
    seconds: float
    prompts: str
    """version of the prompts: changes when they are redone or verified"""
    fingerprint: str
    warnings: list[str] = dataclasses.field(default_factory=list)
    """see ShardReport"""


class ExportFolder(OutputFolder):
    """A folder that an output is exported to.

    Args:
        url: the folder.
        prompts: the output.
    """

    def __init__(self, url: str, prompts: PromptTable, settings: ExportSettings) -> None:
        super().__init__(url, "beside")
        self.prompts, self.settings = prompts, settings
        self.described: dict[str, Any] = {
            **chosen(settings, ["format"]),
            **chosen(settings),
            "prompts": prompts.url,
        }
        self.fingerprint = fingerprint(self.described)

    def check(self) -> None:
        """Check that this run may write here; changes nothing.

        Raises:
            UserError: the folder has other files, or an export with other settings.
        """
        try:
            earlier = self.read_json("_export.json")
        except DamagedError:
            earlier = {}
        if earlier is None:
            if self.names("", ""):
                raise UserError(f"{self.url} holds other files; expected a new or empty folder")
        elif earlier.get("fingerprint") != self.fingerprint:
            theirs = earlier.get("settings") or {}
            raise UserError(
                f"{self.url} is an export with other settings: {differences(theirs, self.described)}; "
                "choose another --to, or remove it and the folder with .pez at its end"
            )

    def claim(self) -> None:
        """Record the settings.

        Raises:
            UserError: see `check`, or the folder is not writable.
        """
        self.check()
        run = {"fingerprint": self.fingerprint, "settings": self.described}
        try:
            self.put("_export.json", (json.dumps(run, indent=2) + "\n").encode())
            self.remove("_SUCCESS")
        except OutputError as error:
            raise UserError(str(error)) from error

    def divide(self, shards: Sequence[Unit]) -> tuple[list[ExportReport], list[Unit]]:
        """Reports of the finished units, and the units that are left."""
        marked = self.names("_exported", ".json")
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            found = list(pool.map(lambda shard: self.finished(shard) if shard.stem in marked else None, shards))
        left = [shard for shard, report in zip(shards, found, strict=True) if report is None]
        return [report for report in found if report is not None], left

    def finished(self, shard: Unit) -> ExportReport | None:
        """The report of a finished unit whose prompts are still the same; else None."""
        try:
            values = self.read_json(f"_exported/{shard.stem}.json")
        except DamagedError:
            return None
        if values is None or (values.get("shard"), values.get("fingerprint")) != (shard.url, self.fingerprint):
            return None
        try:
            report = ExportReport(**values)
        except TypeError:  # of another version
            return None
        return report if report.prompts == self.version_of(shard) else None

    def version_of(self, shard: Unit) -> str:
        """A hash of the reports of a unit's prompts and of their verification."""
        digest = hashlib.sha256()
        for folder in ("_reports", "_verified"):
            try:
                values: object = self.prompts.read_json(f"{folder}/{shard.stem}.json")
            except DamagedError:
                values = "damaged"
            digest.update(json.dumps(values, sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def mark(self, report: ExportReport) -> None:
        """Mark a unit as finished."""
        self.put(f"_exported/{report.stem}.json", (json.dumps(dataclasses.asdict(report), indent=2) + "\n").encode())

    def succeed(self) -> None:
        """Mark the export as done."""
        self.put("_SUCCESS", b"")
