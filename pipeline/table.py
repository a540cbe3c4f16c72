"""The output folder: one Parquet and one report a shard, written so that nothing half-done looks finished.

out/<stem>.parquet     built in memory, published in one step
out/_reports/<stem>.json   written after it: the marker of a finished shard
out/_run.json          the settings; another run may only add to the folder with the same ones
out/_inputs/*.json     which address has which stem, written before any work
out/_SUCCESS           when every shard is done

Verification (`pipeline/verify.py`) adds columns to the Parquet and has files like these of its own:

out/_verify.json, out/_verified/<stem>.json   its settings, and the marker of a verified shard
out/_regenerated/<stem>.tar                   the pictures that were made, if they are kept
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.errors import OutputError as OutputError
from pipeline.shards import Shard, hashed_stem, listing_options, missing_driver

_READS_AT_ONCE = 32

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error_message", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("caption", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("token_ids", pa.list_(pa.int32())),
        pa.field("similarity", pa.float32()),
        pa.field("token_similarity", pa.float32()),
        pa.field("caption_similarity", pa.float32()),
        pa.field("steps", pa.int32()),
        pa.field("seed", pa.int64()),
        pa.field("model", pa.string()),
    ]
)

"""the columns that verification adds; null where a row has no prompt"""


@dataclasses.dataclass(frozen=True)
class Row:
    """One key's row; the columns of SCHEMA."""

    key: str
    shard: str
    status: str
    """ok, no_image, bad_image or not_finite"""
    error_message: str | None = None
    width: int | None = None
    height: int | None = None
    caption: str | None = None
    prompt: str | None = None
    token_ids: list[int] | None = None
    similarity: float | None = None
    token_similarity: float | None = None
    caption_similarity: float | None = None
    steps: int | None = None
    seed: int | None = None
    model: str | None = None


@dataclasses.dataclass(frozen=True)
class ShardReport:
    """What became of one shard."""

    shard: str
    stem: str
    rows: int
    ok: int
    failed: dict[str, int]
    """rows that are not ok, by status"""
    seconds: float
    images_per_second: float
    mean_similarity: float | None
    failures: list[dict[str, str]]
    """key and reason of the first rows that are not ok"""
    fingerprint: str
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    """members of the tar that are in no row, by reason, see read_samples"""


class PromptTable:
    """An output folder, local or in an object store.

    Args:
        url: the folder.
        settings: everything that decides what the rows are, as JSON values.
    """

    def __init__(self, url: str, settings: dict[str, Any]) -> None:
        self.url = url.rstrip("/")
        self.settings = settings
        self.fingerprint = fingerprint(settings)
        try:
            self.fs, self.path = fsspec.core.url_to_fs(self.url, **listing_options(self.url))
        except ImportError as error:
            raise InputError(missing_driver(url, error)) from error
        except ValueError as error:
            raise InputError(f"cannot open the output {url!r}: {' '.join(str(error).split())}") from error
        self.local = isinstance(self.fs, fsspec.get_filesystem_class("file"))

    def check(self) -> bool:
        """See whether this run may write here; changes nothing.

        Returns:
            True where a run with the same settings was here before, or is at work now.

        Raises:
            InputError: the folder holds another run's output with other settings, or cannot be read.
        """
        earlier = self.read_json("_run.json")
        if earlier is None:
            return False
        if earlier.get("fingerprint") != self.fingerprint:
            told = differences(earlier.get("settings", {}), self.settings)
            raise InputError(f"{self.url} holds prompts of other settings: {told}; choose another --output")
        return True

    @classmethod
    def written(cls, url: str) -> "PromptTable":
        """The folder of an earlier run, with the settings of that run.

        Raises:
            InputError: no run wrote there, or it cannot be read.
        """
        run = cls(url, {}).read_json("_run.json")
        if run is None:
            raise InputError(f"no _run.json in {url}; expected the output of python -m jobs.caption")
        return cls(url, run["settings"])

    def shards(self) -> list[Shard]:
        """The finished shards, from their reports."""
        return [Shard(report.shard, report.stem) for report in self.reports()]

    def reports(self, most: int | None = None) -> list[ShardReport]:
        """Reports of finished shards, of the first so many."""
        stems = sorted(self.names("_reports", ".json") & self.names("", ".parquet"))[:most]
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            values = list(pool.map(lambda stem: self.read_json(f"_reports/{stem}.json"), stems))
        return [ShardReport(**report) for report in values if report is not None]

    def claim(self) -> bool:
        """Write this run's settings down; of two runs at once with different settings, one is refused.

        Returns:
            True where a run with the same settings was here before, or is at work now.

        Raises:
            InputError: the folder is not writable, or another run claimed it meanwhile with other settings.
        """
        earlier = self.check()
        run = {"fingerprint": self.fingerprint, "settings": self.settings}
        try:
            # The same bytes again where they are there already: a folder that has become read-only is found out now.
            self.put("_run.json", (json.dumps(run, indent=2) + "\n").encode(), first=not earlier)
        except FileExistsError:
            earlier = True
        except OutputError as error:
            raise InputError(str(error)) from error
        self.remove("_SUCCESS")  # there is work, so not every shard is done
        return self.check() and earlier

    def pending(self, shards: Sequence[Shard]) -> list[Shard]:
        """The shards that are not finished yet, see `divide`."""
        return self.divide(shards)[1]

    def divide(self, shards: Sequence[Shard], retry_failed: bool = False) -> tuple[list[Shard], list[Shard]]:
        """The shards that are finished, and those that are not; each with the stem that it has in this folder.

        Two listings and what earlier runs recorded tell it: a report is read only where its stem may be another address's.
        A stem that an earlier run used for another address is left to it: the shard gets a stem of its own.

        Args:
            retry_failed: a shard is not finished while it has rows that are not ok; this reads every report.
        """
        finished = self.names("_reports", ".json") & self.names("", ".parquet")
        owners = self._owners() if finished else {}
        doubtful = [s for s in shards if s.stem in finished and owners.get(s.stem) != {s.url}]
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            taken = {
                s.stem
                for s, of_another in zip(doubtful, pool.map(self._is_of_another, doubtful), strict=True)
                if of_another
            }
        named = [Shard(s.url, hashed_stem(s.url)) if s.stem in taken else s for s in shards]
        done = [shard for shard in named if shard.stem in finished]
        left = [shard for shard in named if shard.stem not in finished]
        if retry_failed:
            with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
                reports = list(pool.map(self.finished, done))
            left += [s for s, report in zip(done, reports, strict=True) if report is None or report.failed]
            done = [s for s, report in zip(done, reports, strict=True) if report is not None and not report.failed]
        return done, left

    def record(self, shards: Sequence[Shard]) -> None:
        """Write down which address has which stem, where no run has; before any work, so that `divide` can rely on it."""
        owners = self._owners()
        new = {shard.stem: shard.url for shard in shards if shard.url not in owners.get(shard.stem, ())}
        if new:
            data = (json.dumps(new, indent=0) + "\n").encode()
            self.put(f"_inputs/{hashlib.sha256(data).hexdigest()[:16]}.json", data)

    def finished(self, shard: Shard) -> ShardReport | None:
        """The report of a shard that is done, or None."""
        values = self.read_json(f"_reports/{shard.stem}.json")
        if values is None or values.get("shard") != shard.url:
            return None
        with self._reading(f"{shard.stem}.parquet"):
            if not self.fs.exists(self.at(f"{shard.stem}.parquet")):
                return None
        return ShardReport(**values)

    def publish(
        self, shard: Shard, rows: Sequence[Row], seconds: float, left_out: Mapping[str, int] | None = None
    ) -> ShardReport:
        """Write a shard's rows, then its report: a crash between the two leaves the shard to be done again.

        Raises:
            OutputError: the folder does not take them: full, read-only, or an object store that keeps failing.
        """
        report = report_of(shard, rows, seconds, self.fingerprint, left_out)
        self.write_rows(f"{shard.stem}.parquet", rows)
        self.put(f"_reports/{shard.stem}.json", (json.dumps(dataclasses.asdict(report), indent=2) + "\n").encode())
        return report

    def write_rows(self, name: str, rows: Sequence[Row], about: dict[bytes, bytes] | None = None) -> None:
        """Publish rows as one Parquet.

        Args:
            about: more metadata of its schema, beside the settings.
        """
        columns = {column: [getattr(row, column) for row in rows] for column in SCHEMA.names}
        settings = json.dumps({"fingerprint": self.fingerprint, **self.settings}, sort_keys=True).encode()
        self.write_table(name, pa.table(columns, schema=SCHEMA.with_metadata({b"pez": settings, **(about or {})})))

    def write_table(self, name: str, table: pa.Table) -> None:
        """Publish a table as one Parquet, in one step."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", row_group_size=65536)
        if pq.read_metadata(io.BytesIO(buffer.getvalue())).num_rows != table.num_rows:
            raise RuntimeError(f"{name} does not read back")
        self.put(name, buffer.getvalue())

    def read_rows(self, name: str) -> list[Row]:
        """What `write_rows` wrote, without columns that others added.

        Raises:
            FileNotFoundError: it is not there.
        """
        with self.fs.open(self.at(name), "rb") as file:
            return [Row(**values) for values in pq.read_table(file, columns=SCHEMA.names).to_pylist()]

    def read_about(self, name: str) -> dict[bytes, bytes] | None:
        """The schema's metadata of a Parquet, or None where it is not there."""
        try:
            with self.fs.open(self.at(name), "rb") as file:
                return pq.read_schema(file).metadata or {}
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all in it, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.at(name), recursive=True)

    def folders(self, name: str) -> set[str]:
        """Names of what is in a folder."""
        return self.names(name, "")

    def succeed(self) -> None:
        """Mark the whole job as done and sweep what crashed writers left.

        Raises:
            OutputError: the folder does not take the mark.
        """
        self.put("_SUCCESS", b"")
        if self.local:
            for folder in map(self.at, ("", "_reports", "_verified", "_regenerated")):
                for entry in os.scandir(folder) if os.path.isdir(folder) else ():
                    if entry.name.startswith(".") and ".tmp-" in entry.name:
                        with contextlib.suppress(FileNotFoundError):  # another run has just swept or published it
                            if time.time() - entry.stat().st_mtime > 3600:
                                os.unlink(entry.path)

    def read(self, shard: Shard) -> pa.Table:
        """The rows of a finished shard."""
        with self.fs.open(self.at(f"{shard.stem}.parquet"), "rb") as file:
            return pq.read_table(file)

    def _owners(self) -> dict[str, set[str]]:
        """Addresses by stem, as recorded by this and earlier runs; more than one where runs had other inputs."""
        names = [f"_inputs/{name}.json" for name in self.names("_inputs", ".json")]
        owners: dict[str, set[str]] = {}
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            for recorded in pool.map(self.read_json, names):
                for stem, url in (recorded or {}).items():
                    owners.setdefault(stem, set()).add(url)
        return owners

    def _is_of_another(self, shard: Shard) -> bool:
        """True where the report of the shard's stem is not the shard's."""
        values = self.read_json(f"_reports/{shard.stem}.json")
        return values is not None and values.get("shard") != shard.url

    def at(self, name: str) -> str:
        return f"{self.path}/{name}"

    def names(self, folder: str, ending: str) -> set[str]:
        try:
            with self._reading(folder):
                entries = self.fs.ls(self.at(folder).rstrip("/"), detail=False)
        except FileNotFoundError:
            return set()
        names = (entry.rsplit("/", 1)[-1] for entry in entries)
        return {n.removesuffix(ending) for n in names if n.endswith(ending) and not n.startswith(".")}

    def read_json(self, name: str) -> dict[str, Any] | None:
        try:
            with self._reading(name):
                return json.loads(self.fs.cat_file(self.at(name)))
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:  # each filesystem has its own errors
            raise InputError(f"cannot read {self.url}/{name}: {_reason(error)}") from error

    def put(self, name: str, data: bytes, first: bool = False) -> None:
        """Make a file appear whole or not at all.

        Args:
            first: leave alone what is there already.

        Raises:
            FileExistsError: asked to be the first, and is not.
            OutputError: the folder does not take it.
        """
        try:
            put = _put_local if self.local else self._put_object
            put(self.at(name), data, first)
        except FileExistsError:
            if first:
                raise
            raise OutputError(f"cannot write {self.url}/{name}: a file is in the way") from None
        except Exception as error:  # each filesystem has its own errors
            raise OutputError(f"cannot write {self.url}/{name}: {_reason(error)}") from error

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[IO[bytes]]:
        """A file that is written piece by piece, and appears whole at a clean exit or not at all."""
        if self.local:
            with _appearing(self.at(name)) as file:
                yield file
            return
        with tempfile.NamedTemporaryFile() as temporary:
            yield temporary
            temporary.flush()
            self.fs.put_file(temporary.name, self.at(name))

    def _put_object(self, path: str, data: bytes, first: bool) -> None:
        if first:
            with contextlib.suppress(NotImplementedError, TypeError):  # a store without conditional puts
                self.fs.pipe_file(path, data, mode="create")
                return
        self.fs.pipe_file(path, data)


def report_of(
    shard: Shard, rows: Sequence[Row], seconds: float, run: str, left_out: Mapping[str, int] | None = None
) -> ShardReport:
    """Count a shard's rows."""
    bad = [row for row in rows if row.status != "ok"]
    similarities = [row.similarity for row in rows if row.similarity is not None]
    failed: dict[str, int] = {}
    for row in bad:
        failed[row.status] = failed.get(row.status, 0) + 1
    return ShardReport(
        shard=shard.url,
        stem=shard.stem,
        rows=len(rows),
        ok=len(rows) - len(bad),
        failed=failed,
        seconds=round(seconds, 3),
        images_per_second=round((len(rows) - len(bad)) / max(seconds, 1e-9), 3),
        mean_similarity=sum(similarities) / len(similarities) if similarities else None,
        failures=[{"key": row.key, "reason": row.error_message or row.status} for row in bad[:100]],
        fingerprint=run,
        left_out=dict(left_out or {}),
    )


def fingerprint(settings: dict[str, Any]) -> str:
    """A short name of the settings that decide the rows."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    theirs, ours = _flat(theirs), _flat(ours)
    names = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    return ", ".join(f"{n} was {theirs.get(n)!r} and is {ours.get(n)!r}" for n in names) or "the settings"


def _put_local(path: str, data: bytes, first: bool) -> None:
    with _appearing(path, first) as file:
        file.write(data)


@contextlib.contextmanager
def _appearing(path: str, first: bool = False) -> Iterator[IO[bytes]]:
    """A local file that is written piece by piece, and appears whole at a clean exit or not at all."""
    folder, base = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{base}.tmp-{secrets.token_hex(4)}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not (first and _linked(temporary, path)):
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _linked(temporary: str, path: str) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        return False
    return True


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:500] or type(error).__name__


def _flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    pairs: Iterable[tuple[str, Any]] = values.items()
    flat: dict[str, Any] = {}
    for name, value in pairs:
        flat.update(_flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value})
    return flat
