"""An output folder, local or in an object store. Files appear atomically: complete or not at all."""

import contextlib
import functools
import io
import json
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import fsspec

from pez.errors import UserError
from pipeline.errors import OutputError as OutputError
from pipeline.settings import Bookkeeping as Bookkeeping
from pipeline.sources.stores import listing_options, missing_driver
from pipeline.urls import is_local, public_url, redact

READS_AT_ONCE = 32

_ENDS = {".parquet": (b"PAR1", b"PAR1"), ".json": (b"{", b"}")}
"""the first and last bytes of a complete file"""


class DamagedError(UserError):
    """A file of the output folder is damaged; the message names it."""


class OutputFolder:
    """Tables, and bookkeeping files, whose names begin with `_`.

    Args:
        url: the folder.
        bookkeeping: inside = in the folder itself, where pyarrow, pandas, DuckDB and Ray Data skip it; beside = in `<url>.pez`,
            for readers such as Polars that read every file of a folder. None = where an earlier run put it, else inside.

    Raises:
        UserError: an unknown kind of URL, or its driver is not installed.
    """

    def __init__(self, url: str, bookkeeping: Bookkeeping | None = None) -> None:
        if not url.strip():
            raise UserError("the output is an empty name; expected a local folder or a URL such as s3://bucket/prompts")
        self.source = _absolute(url) if is_local(url) else url.rstrip("/")
        """the URL to open; it may contain a password and is never shown"""
        self.url = self.source if is_local(url) else public_url(self.source)
        self._bookkeeping = bookkeeping
        try:
            self.fs: Any
            self.path: str
            self.fs, self.path = fsspec.core.url_to_fs(self.source, **listing_options(self.source))
        except ImportError as error:
            raise UserError(missing_driver(self.source, error)) from error
        except ValueError as error:
            raise UserError(f"cannot open the output {self.url!r}: {redact(_reason(error), self.source)}") from error
        self.local = isinstance(self.fs, fsspec.get_filesystem_class("file"))

    def at(self, name: str) -> str:
        """The path of a file or folder."""
        return f"{self._books}/{name}" if name.startswith("_") else f"{self.path}/{name}"

    @functools.cached_property
    def _books(self) -> str:
        """The folder of the bookkeeping."""
        beside = f"{self.path}.pez"
        if self._bookkeeping == "inside":
            return self.path
        return beside if self._bookkeeping == "beside" or self._exists(f"{beside}/_run.json") else self.path

    def check_bookkeeping(self) -> None:
        """Raise UserError if an earlier run put the bookkeeping in the other place."""
        if self._bookkeeping is None:
            return
        other, where = (self.path, "inside") if self._bookkeeping == "beside" else (f"{self.path}.pez", "beside")
        if self._exists(f"{other}/_run.json"):
            raise UserError(f"{self.url} has its bookkeeping {where}; omit --bookkeeping, or choose another --output")

    def _exists(self, path: str) -> bool:
        try:
            return bool(self.fs.exists(path))
        except Exception:  # filesystems raise many kinds; the next access reports the problem
            return False

    def names(self, folder: str, suffix: str) -> set[str]:
        """Names, without the suffix, of the files in a folder that have it; with the suffix '', also of its folders.

        Hidden and empty files do not count; pez never writes empty ones.
        """
        try:
            with self.reading(folder):
                entries = self.fs.ls(self.at(folder).rstrip("/"), detail=True)
        except FileNotFoundError:
            return set()
        found = set()
        for entry in entries:
            name = entry["name"].rstrip("/").rsplit("/", 1)[-1]
            if (
                name.endswith(suffix)
                and not name.startswith(".")
                and (entry["type"] != "file" or entry.get("size") != 0)
            ):
                found.add(name.removesuffix(suffix))
        return found

    def folders(self, name: str) -> set[str]:
        """Names of the entries of a folder."""
        return self.names(name, "")

    def whole(self, names: Iterable[str], pattern: str) -> set[str]:
        """The names whose files are complete, judging by their first and last bytes; object stores keep complete files only.

        Args:
            pattern: from name to file, such as `_reports/{}.json`.
        """
        if not self.local:
            return set(names)
        names = list(names)
        ends = _ENDS[os.path.splitext(pattern)[1]]
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            found = pool.map(lambda name: _has_ends(self.at(pattern.format(name)), *ends), names)
            return {name for name, good in zip(names, found, strict=True) if good}

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Read a JSON object; None if there is no such file.

        Raises:
            DamagedError: it is not a JSON object.
            UserError: it cannot be read.
        """
        try:
            with self.reading(name):
                data = self.fs.cat_file(self.at(name))
        except FileNotFoundError:
            return None
        try:
            values = json.loads(data)
        except ValueError as error:
            raise DamagedError(f"{self.url}/{name} is damaged: {_reason(error)}") from error
        if not isinstance(values, dict):
            raise DamagedError(f"{self.url}/{name} is damaged: found a {type(values).__name__}; expected an object")
        return values

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Wrap reads: errors become a UserError that names the file, except for a FileNotFoundError."""
        try:
            yield
        except FileNotFoundError:
            raise
        except UserError:
            raise
        except Exception as error:  # filesystems raise many kinds
            raise UserError(f"cannot read {self.url}/{name}: {redact(_reason(error), self.source)}") from error

    def put(self, name: str, data: bytes, if_absent: bool = False) -> None:
        """Write a file atomically.

        Args:
            if_absent: do not replace an existing file.

        Raises:
            FileExistsError: the file exists, and `if_absent` is set.
            OutputError: the file cannot be written.
        """
        try:
            put = _put_local if self.local else self._put_object
            put(self.at(name), data, if_absent)
        except FileExistsError:
            if if_absent:
                raise
            raise OutputError(f"cannot write {self.url}/{name}: a file is in the way") from None
        except Exception as error:  # filesystems raise many kinds
            raise OutputError(f"cannot write {self.url}/{name}: {redact(_reason(error), self.source)}") from error

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[IO[bytes]]:
        """A file to write incrementally; it appears atomically on a clean exit, or not at all."""
        if self.local:
            with _appearing(self.at(name)) as file:
                yield file
            return
        with tempfile.NamedTemporaryFile() as temporary:
            yield temporary
            temporary.flush()
            self.fs.put_file(temporary.name, self.at(name))

    def remove(self, name: str) -> None:
        """Remove a file or a folder with its contents, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.at(name), recursive=True)

    def _put_object(self, path: str, data: bytes, if_absent: bool) -> None:
        if if_absent:
            with contextlib.suppress(NotImplementedError, TypeError):  # a store without conditional puts
                self.fs.pipe_file(path, data, mode="create")
                return
        self.fs.pipe_file(path, data)


def _absolute(url: str) -> str:
    path = url.split("://", 1)[1] if "://" in url else url
    return os.path.abspath(os.path.expanduser(path))


def _has_ends(path: str, head: bytes, tail: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            begins = file.read(len(head)) == head
            size = file.seek(0, io.SEEK_END)
            file.seek(max(size - 16, 0))
            return begins and size >= len(head + tail) and file.read().rstrip().endswith(tail)
    except OSError:
        return False


def _put_local(path: str, data: bytes, if_absent: bool) -> None:
    with _appearing(path, if_absent) as file:
        file.write(data)


@contextlib.contextmanager
def _appearing(path: str, if_absent: bool = False) -> Iterator[IO[bytes]]:
    """A local file to write incrementally; it appears atomically on a clean exit, or not at all."""
    folder, base = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{base}.tmp-{secrets.token_hex(4)}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not (if_absent and _linked(temporary, path)):
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
