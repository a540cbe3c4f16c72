"""An output folder, local or in an object store: files that appear whole or not at all."""

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
from pipeline.addresses import is_local, public_address, redact
from pipeline.errors import OutputError as OutputError
from pipeline.settings import Bookkeeping as Bookkeeping
from pipeline.sources.stores import listing_options, missing_driver

READS_AT_ONCE = 32

_ENDS = {".parquet": (b"PAR1", b"PAR1"), ".json": (b"{", b"}")}
"""how a whole file begins and ends"""


class DamagedError(UserError):
    """A file of the output folder that cannot be read as what it is; the message names it."""


class OutputFolder:
    """Tables, and the files of bookkeeping, whose names begin with `_`.

    Args:
        url: the folder.
        bookkeeping: inside = in the folder itself, where pyarrow, pandas, DuckDB and Ray Data skip it; beside = in `<url>.pez`,
            for readers that take every file of a folder, as Polars does. None = where an earlier run put it, else inside.

    Raises:
        UserError: no such kind of address, or its driver is not installed.
    """

    def __init__(self, url: str, bookkeeping: Bookkeeping | None = None) -> None:
        if not url.strip():
            raise UserError("the output is an empty name; expected a folder, local or like s3://bucket/prompts")
        self.source = _absolute(url) if is_local(url) else url.rstrip("/")
        """what is opened; it may hold a password and is never shown"""
        self.url = self.source if is_local(url) else public_address(self.source)
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
        """The path of a file or folder by its name."""
        return f"{self._books}/{name}" if name.startswith("_") else f"{self.path}/{name}"

    @functools.cached_property
    def _books(self) -> str:
        """Where the bookkeeping is."""
        beside = f"{self.path}.pez"
        if self._bookkeeping == "inside":
            return self.path
        return beside if self._bookkeeping == "beside" or self._exists(f"{beside}/_run.json") else self.path

    def check_bookkeeping(self) -> None:
        """Raises UserError where an earlier run put the bookkeeping in the other place."""
        if self._bookkeeping is None:
            return
        other, where = (self.path, "inside") if self._bookkeeping == "beside" else (f"{self.path}.pez", "beside")
        if self._exists(f"{other}/_run.json"):
            raise UserError(
                f"{self.url} has its bookkeeping {where}; leave --bookkeeping out, or choose another --output"
            )

    def _exists(self, path: str) -> bool:
        try:
            return bool(self.fs.exists(path))
        except Exception:  # each filesystem has its own errors; the next access to the folder says what is wrong
            return False

    def names(self, folder: str, ending: str) -> set[str]:
        """Names, without their ending, of the files in a folder that have it; of its folders, too, where it is ''.

        Hidden and empty files do not count: those of ours are never empty.
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
                name.endswith(ending)
                and not name.startswith(".")
                and (entry["type"] != "file" or entry.get("size") != 0)
            ):
                found.add(name.removesuffix(ending))
        return found

    def folders(self, name: str) -> set[str]:
        """Names of what is in a folder."""
        return self.names(name, "")

    def whole(self, names: Iterable[str], pattern: str) -> set[str]:
        """Of names, those whose file is whole, as far as can be told without reading it; a store keeps whole files only.

        Args:
            pattern: from name to file, like `_reports/{}.json`.
        """
        if not self.local:
            return set(names)
        names = list(names)
        ends = _ENDS[os.path.splitext(pattern)[1]]
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            found = pool.map(lambda name: _has_ends(self.at(pattern.format(name)), *ends), names)
            return {name for name, good in zip(names, found, strict=True) if good}

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A file as an object; None where it is not there.

        Raises:
            DamagedError: it holds something else.
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
        """Around reads: what goes wrong is an UserError that names the file; a file that is not there stays what it is."""
        try:
            yield
        except FileNotFoundError:
            raise
        except UserError:
            raise
        except Exception as error:  # each filesystem has its own errors
            raise UserError(f"cannot read {self.url}/{name}: {redact(_reason(error), self.source)}") from error

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
            raise OutputError(f"cannot write {self.url}/{name}: {redact(_reason(error), self.source)}") from error

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

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all in it, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.at(name), recursive=True)

    def _put_object(self, path: str, data: bytes, first: bool) -> None:
        if first:
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
