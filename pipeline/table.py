"""The output folder: one Parquet file and one report per shard, written so that unfinished work never looks finished.

out/<stem>.parquet         built in memory, published atomically
out/_reports/<stem>.json   written last; marks a finished shard
out/_run.json              the settings and the process; only runs with the same settings may add to the folder
out/_inputs/*.json         maps stems to URLs; written before any work
out/_SUCCESS               every shard is done
out/.huggingface.yaml      tells `datasets` which files are the tables

Verification (`pipeline/stages/verify.py`) fills in the last columns of the Parquet files and adds its own files:

out/_verify.json, out/_verified/<stem>.json   its settings; marks a verified shard
out/_regenerated/<stem>.tar                   the generated images, if they are kept
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pez.errors import UserError
from pipeline.description import differences, fingerprint, upgraded
from pipeline.errors import OutputError
from pipeline.folder import READS_AT_ONCE, DamagedError
from pipeline.processes import is_at_work, this_process
from pipeline.row_files import RowFiles
from pipeline.rows import Row, ShardReport, report_of
from pipeline.sources.base import Unit
from pipeline.sources.folders import listed_units
from pipeline.sources.units import hashed_stem

_DATASET_CARD = b"configs:\n- config_name: default\n  data_files: '*.parquet'\n"


class PromptTable(RowFiles):
    """An output folder with tables of prompts: who may write to it, and which units are finished."""

    def check(self) -> bool:
        """Check whether this run may write here, without changing anything.

        Returns:
            True if a run with the same settings was here before or is running.

        Raises:
            UserError: the folder has output of a run with different settings, or cannot be read. A run that has written no row
                and is not alive on this machine does not count.
        """
        self.check_bookkeeping()
        try:
            earlier = self.read_json("_run.json")
        except DamagedError:
            if self._has_rows():
                raise
            return False
        if earlier is None:
            self._expect_unclaimed()
            return False
        if "fingerprint" not in earlier:
            raise UserError(self._of_others("_run.json"))
        if self._is_same(earlier):
            return True
        if self._has_rows() or is_at_work(earlier.get("claimed_by")):
            self._refuse(earlier)
        return False

    def _expect_unclaimed(self) -> None:
        """Raise UserError if rows with other settings or another program's output exist although `_run.json` does not."""
        reports = self.reports()
        if any(report.fingerprint != self.fingerprint for report in reports):
            raise UserError(
                f"{self.url} holds prompts of other settings, and _run.json, which describes them, is missing; "
                "choose another --output"
            )
        if not reports and self._exists(self.at("_SUCCESS")):
            raise UserError(self._of_others("_SUCCESS"))

    def _of_others(self, name: str) -> str:
        return (
            f"{self.url}/{name} is there already and was not written by a job of this project; choose another --output"
        )

    def _has_rows(self) -> bool:
        """True if a run has finished a shard or a part, or has embedded one."""
        if self.names("_reports", ".json") or self.folders("_parts") or self.names("_embedded", ".json"):
            return True
        metadata = (self.read_metadata(f"{stem}.parquet") for stem in self.names("", ".parquet"))
        return any(found is not None and b"pez" in found for found in metadata)  # after a crash before the report

    def _refuse(self, earlier: dict[str, Any]) -> None:
        """Raise UserError: the folder belongs to another run."""
        theirs = upgraded(earlier.get("settings") or {})
        if theirs.get("version") != self.settings.get("version"):
            raise UserError(
                f"{self.url} was written by another version of this project, which learns different prompts; "
                "finish it with that version, or choose another --output"
            )
        raise UserError(
            f"{self.url} holds prompts of other settings: {differences(theirs, self.settings)}; choose another --output"
        )

    @classmethod
    def written(cls, url: str) -> "PromptTable":
        """Open the folder of an earlier run, with its settings.

        Raises:
            UserError: there is no run, or it cannot be read.
        """
        folder = cls(url, {})
        run = folder.read_json("_run.json")
        if run is None:
            raise UserError(f"no _run.json in {folder.url}; expected the output of python -m jobs.caption")
        if not isinstance(run.get("settings"), dict):
            raise DamagedError(f"{folder.url}/_run.json is damaged: it has no settings")
        return cls(url, upgraded(run["settings"]))

    def shards(self) -> list[Unit]:
        """The finished shards, according to their reports."""
        return listed_units([Unit(report.shard, report.stem) for report in self.reports()], self)

    def reports(self, limit: int | None = None) -> list[ShardReport]:
        """Reports of finished shards, up to a limit."""
        stems = sorted(self._finished_stems())[:limit]
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            found = pool.map(self._report, stems)
            return [report for report in found if report is not None]

    def claim(self) -> bool:
        """Record this run's settings. Of two concurrent runs with different settings, one is refused.

        Returns:
            True if a run with the same settings was here before or is running.

        Raises:
            UserError: the folder is not writable, or another run with different settings has claimed it meanwhile.
        """
        earlier = self.check()
        abandoned = not earlier and self._claimed()
        run = {"fingerprint": self.fingerprint, "settings": self.settings, "all_settings": self.in_full}
        run["claimed_by"] = this_process()
        try:
            # Rewrite an existing file, to find out now if the folder has become read-only.
            self.put("_run.json", (json.dumps(run, indent=2) + "\n").encode(), if_absent=not earlier and not abandoned)
            if self.at("_run.json") == f"{self.path}/_run.json" and not self._exists(self.at(".huggingface.yaml")):
                self.put(".huggingface.yaml", _DATASET_CARD)
        except FileExistsError:
            earlier = True
        except OutputError as error:
            raise UserError(str(error)) from error
        if abandoned:
            self.remove("_inputs")
        self.remove("_SUCCESS")  # there is work to do
        self.check_claim()
        return earlier

    def _claimed(self) -> bool:
        try:
            return self.read_json("_run.json") is not None
        except DamagedError:
            return True

    def check_claim(self) -> None:
        """Raise UserError if a run with different settings has claimed the folder."""
        run = self.read_json("_run.json")
        if run is not None and not self._is_same(run):
            self._refuse(run)

    def _is_same(self, run: dict[str, Any]) -> bool:
        """True if a `_run.json`, of this or an earlier version, has these settings."""
        theirs = run.get("settings")
        if run.get("fingerprint") == self.fingerprint:
            return True
        return isinstance(theirs, dict) and fingerprint(upgraded(theirs)) == self.fingerprint

    def pending(self, shards: Sequence[Unit]) -> list[Unit]:
        """The unfinished shards; see `divide`."""
        return self.divide(shards)[1]

    def divide(self, shards: Sequence[Unit], retry_failed: bool = False) -> tuple[list[Unit], list[Unit]]:
        """Split shards into finished and unfinished ones, each with its stem in this folder.

        A shard is identified by its URL and keeps its first stem. Listings and the records of earlier runs provide it; a report
        is read only if there is no record of its stem. If the stem belongs to another URL, the shard gets a new one.

        Args:
            retry_failed: count a shard as unfinished while it has rows that are not ok; this reads every report.

        Raises:
            UserError: another program's Parquet file has the name of a shard's.
        """
        finished = self._finished_stems()
        owners = self._owners()
        doubtful = [stem for stem in finished if len(owners.get(stem, ())) != 1]
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            for stem, report in zip(doubtful, pool.map(self._report, doubtful), strict=True):
                if report is None:
                    finished.remove(stem)
                else:
                    owners[stem] = {report.shard}
        stems = {url: stem for stem, urls in owners.items() for url in urls if stem not in finished}
        stems |= {next(iter(owners[stem])): stem for stem in finished}

        def stem_of(shard: Unit) -> str:
            return stems.get(shard.url) or (hashed_stem(shard.url) if shard.stem in owners else shard.stem)

        named = [dataclasses.replace(shard, stem=stem_of(shard)) for shard in shards]
        done = [shard for shard in named if shard.stem in finished]
        left = [shard for shard in named if shard.stem not in finished]
        self._expect_ours([shard.stem for shard in left], owners)
        if retry_failed:
            with ThreadPoolExecutor(READS_AT_ONCE) as pool:
                reports = list(pool.map(self.finished, done))
            left += [s for s, report in zip(done, reports, strict=True) if report is None or report.failed]
            done = [s for s, report in zip(done, reports, strict=True) if report is not None and not report.failed]
        return done, left

    def _finished_stems(self) -> set[str]:
        """Stems with a complete Parquet file and a complete report."""
        both = self.names("_reports", ".json") & self.names("", ".parquet")
        return self.whole(self.whole(both, "_reports/{}.json"), "{}.parquet")

    def _expect_ours(self, stems: Sequence[str], owners: Mapping[str, set[str]]) -> None:
        """Raise UserError if another program's Parquet file would be overwritten."""
        there = self.names("", ".parquet")
        for stem in stems:
            if stem in there and stem not in owners:
                metadata = self.read_metadata(f"{stem}.parquet")
                if metadata is None or b"pez" not in metadata:
                    raise UserError(self._of_others(f"{stem}.parquet"))

    def record(self, shards: Sequence[Unit]) -> None:
        """Record the stems of new URLs, before any work, so that `divide` can rely on them."""
        owners = self._owners()
        new = {shard.stem: shard.url for shard in shards if shard.url not in owners.get(shard.stem, ())}
        if new:
            data = (json.dumps(new, indent=0) + "\n").encode()
            self.put(f"_inputs/{hashlib.sha256(data).hexdigest()[:16]}.json", data)

    def finished(self, shard: Unit) -> ShardReport | None:
        """The report of a finished shard, or None."""
        report = self._report(shard.stem)
        if report is None or report.shard != shard.url:
            return None
        name = f"{shard.stem}.parquet"
        try:
            with self.reading(name):
                if not self.fs.info(self.at(name)).get("size"):
                    return None
        except FileNotFoundError:
            return None
        return report if self.whole([shard.stem], "{}.parquet") else None

    def _report(self, stem: str) -> ShardReport | None:
        """Read a report; None if it is missing or damaged, and then its shard is redone."""
        try:
            values = self.read_json(f"_reports/{stem}.json")
        except DamagedError:
            return None
        return None if values is None else ShardReport.read(values)

    def publish(
        self,
        shard: Unit,
        rows: Sequence[Row],
        seconds: float,
        left_out: Mapping[str, int] | None = None,
        warnings: Sequence[str] = (),
    ) -> ShardReport:
        """Write a shard's rows, then its report; after a crash in between, the shard is redone.

        Args:
            left_out, warnings: for the report.

        Raises:
            OutputError: the files cannot be written: full, read-only, or an object store that keeps failing.
            UserError: a run with different settings has claimed the folder.
        """
        self.check_claim()
        report = report_of(shard, rows, seconds, self.fingerprint, left_out, warnings)
        self.write_rows(f"{shard.stem}.parquet", rows)
        self.put(f"_reports/{shard.stem}.json", (json.dumps(dataclasses.asdict(report), indent=2) + "\n").encode())
        return report

    def describe_again(self, shard: Unit, mean_similarity: float) -> None:
        """Correct the mean similarity in the report of a finished shard, after others of its prompts were published.

        Raises:
            OutputError: the report cannot be written.
        """
        name = f"_reports/{shard.stem}.json"
        if (report := self.read_json(name)) is not None:
            report["mean_similarity"] = mean_similarity
            self.put(name, (json.dumps(report, indent=2) + "\n").encode())

    def succeed(self, shards: Sequence[Unit] = ()) -> None:
        """Mark the job as done and remove leftovers of crashed writers.

        Args:
            shards: of the job.

        Raises:
            OutputError: files of the shards are missing, or the marker cannot be written.
        """
        there = self.names("_reports", ".json") & self.names("", ".parquet")
        missing = [shard for shard in shards if shard.stem not in there]
        if missing:
            raise OutputError(
                f"{len(missing)} of {len(shards)} tables are not in {self.url}, including {missing[0].stem}.parquet: they were "
                "removed, or the actors write to another folder of this name; use an --output on a shared disk or in an object "
                "store"
            )
        self.put("_SUCCESS", b"")
        if self.local:
            for folder in map(self.at, ("", "_reports", "_verified", "_regenerated")):
                for entry in os.scandir(folder) if os.path.isdir(folder) else ():
                    if entry.name.startswith(".") and ".tmp-" in entry.name:
                        with contextlib.suppress(FileNotFoundError):  # another run has just removed or published it
                            if time.time() - entry.stat().st_mtime > 3600:
                                os.unlink(entry.path)

    def _owners(self) -> dict[str, set[str]]:
        """URLs by stem, as recorded by all runs; more than one if runs had different inputs."""
        names = [f"_inputs/{name}.json" for name in self.names("_inputs", ".json")]
        owners: dict[str, set[str]] = {}
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            for recorded in pool.map(self._recorded, names):
                for stem, url in recorded.items():
                    owners.setdefault(stem, set()).add(url)
        return owners

    def _recorded(self, name: str) -> dict[str, Any]:
        try:
            return self.read_json(name) or {}
        except DamagedError:
            return {}  # fall back on the reports
