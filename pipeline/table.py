"""The output folder: one Parquet and one report a shard, written so that nothing half-done looks finished.

out/<stem>.parquet     built in memory, published in one step
out/_reports/<stem>.json   written after it: the marker of a finished shard
out/_run.json          the settings; another run may only add to the folder with the same ones
out/_SUCCESS           when every shard is done
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.shards import InputError, Shard, hashed_stem, listing_options

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


@dataclasses.dataclass(frozen=True)
class Row:
    """One key's row; the columns of SCHEMA."""

    key: str
    shard: str
    status: str
    """ok, no_image or bad_image"""
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


class OutputError(RuntimeError):
    """The output folder does not take a file; the message is one line."""


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
        except (ImportError, ValueError) as error:
            raise InputError(f"cannot open the output {url!r}: {' '.join(str(error).split())}") from error
        self.local = isinstance(self.fs, fsspec.get_filesystem_class("file"))

    def check(self) -> bool:
        """See whether this run may write here; changes nothing.

        Returns:
            True where a run with the same settings was here before, or is at work now.

        Raises:
            InputError: the folder holds another run's output with other settings, or cannot be read.
        """
        earlier = self._read_json("_run.json")
        if earlier is None:
            return False
        if earlier.get("fingerprint") != self.fingerprint:
            theirs, ours = _flat(earlier.get("settings", {})), _flat(self.settings)
            names = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
            told = ", ".join(f"{n} was {theirs.get(n)!r} and is {ours.get(n)!r}" for n in names) or "the settings"
            raise InputError(f"{self.url} holds prompts of other settings: {told}; choose another --output")
        return True

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
            self._publish("_run.json", (json.dumps(run, indent=2) + "\n").encode(), first=not earlier)
        except FileExistsError:
            earlier = True
        except OutputError as error:
            raise InputError(str(error)) from error
        return self.check() and earlier

    def pending(self, shards: Sequence[Shard]) -> list[Shard]:
        """The shards that are not finished yet, from two listings.

        A stem that an earlier run used for another address is left to it: the shard gets a stem of its own.
        """
        finished = self._names("_reports", ".json") & self._names("", ".parquet")
        left = []
        for shard in shards:
            if shard.stem not in finished:
                left.append(shard)
            elif (report := self.finished(shard)) is None:
                other = Shard(shard.url, hashed_stem(shard.url))
                if other.stem not in finished:
                    left.append(other)
            else:
                assert report.shard == shard.url
        return left

    def finished(self, shard: Shard) -> ShardReport | None:
        """The report of a shard that is done, or None."""
        values = self._read_json(f"_reports/{shard.stem}.json")
        if values is None or values.get("shard") != shard.url:
            return None
        with self._reading(f"{shard.stem}.parquet"):
            if not self.fs.exists(self._at(f"{shard.stem}.parquet")):
                return None
        return ShardReport(**values)

    def publish(self, shard: Shard, rows: Sequence[Row], seconds: float) -> ShardReport:
        """Write a shard's rows, then its report: a crash between the two leaves the shard to be done again.

        Raises:
            OutputError: the folder does not take them: full, read-only, or an object store that keeps failing.
        """
        columns = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names}
        about = {b"pez": json.dumps({"fingerprint": self.fingerprint, **self.settings}, sort_keys=True).encode()}
        table = pa.table(columns, schema=SCHEMA.with_metadata(about))
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", row_group_size=65536)
        if pq.read_metadata(io.BytesIO(buffer.getvalue())).num_rows != len(rows):
            raise RuntimeError(f"{shard.stem}.parquet does not read back")
        report = report_of(shard, rows, seconds, self.fingerprint)
        self._publish(f"{shard.stem}.parquet", buffer.getvalue())
        self._publish(f"_reports/{shard.stem}.json", (json.dumps(dataclasses.asdict(report), indent=2) + "\n").encode())
        return report

    def succeed(self) -> None:
        """Mark the whole job as done and sweep what crashed writers left.

        Raises:
            OutputError: the folder does not take the mark.
        """
        self._publish("_SUCCESS", b"")
        if self.local:
            for folder in (self.path, self._at("_reports")):
                for entry in os.scandir(folder):
                    if entry.name.startswith(".") and ".tmp-" in entry.name:
                        with contextlib.suppress(FileNotFoundError):  # another run has just swept or published it
                            if time.time() - entry.stat().st_mtime > 3600:
                                os.unlink(entry.path)

    def read(self, shard: Shard) -> pa.Table:
        """The rows of a finished shard."""
        with self.fs.open(self._at(f"{shard.stem}.parquet"), "rb") as file:
            return pq.read_table(file)

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}"

    def _names(self, folder: str, ending: str) -> set[str]:
        try:
            with self._reading(folder):
                entries = self.fs.ls(self._at(folder).rstrip("/"), detail=False)
        except FileNotFoundError:
            return set()
        names = (entry.rsplit("/", 1)[-1] for entry in entries)
        return {n.removesuffix(ending) for n in names if n.endswith(ending) and not n.startswith(".")}

    def _read_json(self, name: str) -> dict[str, Any] | None:
        try:
            with self._reading(name):
                return json.loads(self.fs.cat_file(self._at(name)))
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

    def _publish(self, name: str, data: bytes, first: bool = False) -> None:
        """Make a file appear whole or not at all.

        Args:
            first: leave alone what is there already.

        Raises:
            FileExistsError: asked to be the first, and is not.
            OutputError: the folder does not take it.
        """
        try:
            put = _put_local if self.local else self._put_object
            put(self._at(name), data, first)
        except FileExistsError:
            if first:
                raise
            raise OutputError(f"cannot write {self.url}/{name}: a file is in the way") from None
        except Exception as error:  # each filesystem has its own errors
            raise OutputError(f"cannot write {self.url}/{name}: {_reason(error)}") from error

    def _put_object(self, path: str, data: bytes, first: bool) -> None:
        if first:
            with contextlib.suppress(NotImplementedError, TypeError):  # a store without conditional puts
                self.fs.pipe_file(path, data, mode="create")
                return
        self.fs.pipe_file(path, data)


def _put_local(path: str, data: bytes, first: bool) -> None:
    folder, base = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{base}.tmp-{secrets.token_hex(4)}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not (first and _linked(temporary, path)):
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def report_of(shard: Shard, rows: Sequence[Row], seconds: float, run: str) -> ShardReport:
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
    )


def fingerprint(settings: dict[str, Any]) -> str:
    """A short name of the settings that decide the rows."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


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
