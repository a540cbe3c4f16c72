"""Reading one small file as a whole, from a disk, an object store or a web server: its bytes, or why there are none.

Temporary errors are retried. If nothing can be reached at all, the unit fails, so that an outage produces no rows.
"""

import contextlib
import os
import posixpath
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

import fsspec

import pez
from pipeline.sources.base import Unit, UnitError
from pipeline.sources.stores import listing_options, missing_driver, words_of
from pipeline.urls import is_local, public_url

MAX_IMAGE_BYTES = 256 * 2**20
WAITS: Sequence[float] = (0.5, 2.0, 8.0)
"""seconds before each further attempt"""
SILENCE = 30.0
"""seconds without data after which a web server is considered dead"""
LONGEST = 300.0
"""seconds that a download may take"""
_CHUNK = 2**18
_PASSING = (408, 425, 429)
"""HTTP status codes 4xx after which retrying may help"""
_LOCAL_FOREVER = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError)


class NotReadError(Exception):
    """A file cannot be read; the message says why, in one line."""

    def __init__(self, reason: str, unreached: bool = False) -> None:
        super().__init__(reason)
        self.unreached = unreached
        """there was no answer, so the cause may be this machine or its network instead of the file"""


def read_file(url: str, limit: int = MAX_IMAGE_BYTES) -> bytes:
    """The bytes of a file.

    Args:
        limit: in bytes; a larger file is an error.

    Raises:
        NotReadError: it cannot be read, after all attempts.
    """
    read = _from_web if _is_web(url) else _from_disk if is_local(url) else _from_store
    for wait in (*WAITS, None):
        try:
            data = read(url, limit)
        except NotReadError:
            raise
        except Exception as error:  # each filesystem has its own errors
            if wait is None:
                answered = isinstance(error, urllib.error.HTTPError)
                raise NotReadError(f"{_reason(error, url)} ({len(WAITS) + 1} attempts)", not answered) from error
            time.sleep(wait)
            continue
        if not data:
            raise NotReadError("the file is empty")
        if len(data) > limit:
            raise _too_large(limit)
        return data
    raise AssertionError("the last attempt returns or raises")


def beside(table: str, value: str) -> str:
    """The path or URL of a file named in a table: a URL, an absolute path, or a path relative to the table.

    Raises:
        NotReadError: it is of a kind that is not opened.
    """
    value = value.strip()
    if "::" in value or value.startswith("pipe:"):
        raise NotReadError("chains of file systems and commands are not opened; expected a URL or a path")
    if "://" in value:
        protocol = value.partition("://")[0].lower()
        if _is_web(value):
            return value
        try:
            fsspec.get_filesystem_class(protocol)
        except ValueError as error:
            raise NotReadError(f"{protocol}:// is not a protocol that fsspec knows") from error
        except ImportError as error:
            raise NotReadError(missing_driver(value, error)) from error
        return value
    if _is_web(table):
        return urljoin(table, quote(value))
    if value.startswith("/") or is_local(table):
        return value if value.startswith("/") else table.rpartition("/")[0] + "/" + value
    protocol, _, rest = table.partition("://")
    below = posixpath.normpath(rest.rpartition("/")[0] + "/" + value)  # object stores do not resolve ..
    return f"{protocol}://{below}"


class Reach:
    """Detects that nothing of a unit can be reached.

    Args:
        in_a_row: number of consecutive unreachable files after which the unit fails; None = only if no file was reached.
    """

    PATIENCE = 16
    """number of unreachable files that are tolerated"""

    def __init__(self, unit: Unit, in_a_row: int | None = PATIENCE) -> None:
        self.unit, self.in_a_row = unit, in_a_row
        self.reached, self.missed, self.row = 0, 0, 0

    def see(self, error: NotReadError | None) -> None:
        """Count a file; raise UnitError if too many in a row cannot be reached."""
        if error is None or not error.unreached:
            self.reached, self.row = self.reached + 1, 0
            return
        self.missed, self.row = self.missed + 1, self.row + 1
        if self.in_a_row is not None and self.row >= self.in_a_row:
            raise UnitError(f"{self.unit.url}: {self.row} files in a row cannot be reached, the last with: {error}")

    def conclude(self, last: str = "") -> None:
        """Raise UnitError if none of many files was reached."""
        if not self.reached and self.missed >= self.PATIENCE:
            raise UnitError(
                f"{self.unit.url}: none of its {self.missed} files can be reached{last}; is there a network?"
            )


def _is_web(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def _from_disk(url: str, limit: int) -> bytes:
    path = url.split("://", 1)[1] if "://" in url else os.path.expanduser(url)
    try:
        mode, size = os.stat(path).st_mode, os.stat(path).st_size
        if stat.S_ISDIR(mode):
            raise NotReadError("it is a folder; expected an image file")
        if not stat.S_ISREG(mode):  # reading a pipe would hang
            raise NotReadError("it is not a regular file; expected an image file")
        if size > limit:
            raise _too_large(limit, size)
        with open(path, "rb") as file:
            return file.read()
    except _LOCAL_FOREVER as error:
        if os.path.islink(path) and not os.path.exists(path):
            raise NotReadError(f"a link to {os.readlink(path)!a}, which is not there") from error
        raise NotReadError(_reason(error, url)) from error


def _from_store(url: str, limit: int) -> bytes:
    try:
        fs, path = fsspec.core.url_to_fs(url, **listing_options(url))
        try:
            return bytes(fs.cat_file(path, start=0, end=limit + 1))
        except (FileNotFoundError, PermissionError):
            raise
        except Exception:  # reading a range of an empty file fails
            with contextlib.suppress(Exception):
                if fs.info(path)["size"] == 0:
                    return b""
            raise
    except ImportError as error:
        raise NotReadError(missing_driver(url, error)) from error
    except FileNotFoundError as error:
        raise NotReadError("there is no such file") from error
    except PermissionError as error:
        raise NotReadError(f"it is refused ({_reason(error, url)})", unreached=True) from error


def _from_web(url: str, limit: int) -> bytes:
    request = urllib.request.Request(_encoded(url), headers={"User-Agent": f"pez-captions/{pez.__version__}"})
    deadline = time.monotonic() + LONGEST
    try:
        with urllib.request.urlopen(request, timeout=SILENCE) as response:
            expected = _whole_number(response.headers.get("Content-Length"))
            if expected is not None and expected > limit:
                raise _too_large(limit, expected)
            data = bytearray()
            while len(data) <= limit and (chunk := response.read1(_CHUNK)):
                data += chunk
                if time.monotonic() > deadline:
                    raise NotReadError(f"only {len(data)} bytes came in {LONGEST:.0f} seconds")
            if expected is not None and len(data) < expected and not response.headers.get("Content-Encoding"):
                raise OSError(f"it ended after {len(data)} of {expected} bytes")
            return bytes(data)
    except urllib.error.HTTPError as error:
        error.close()
        if 400 <= error.code < 500 and error.code not in _PASSING:
            raise NotReadError(_reason(error, url)) from error
        raise
    except ValueError as error:  # not a URL
        raise NotReadError(f"it is not a URL ({_reason(error, url)})") from error


def _encoded(url: str) -> str:
    """A URL as people write it, encoded in ASCII."""
    parts = urlsplit(url)
    host = parts.netloc
    with contextlib.suppress(UnicodeError):
        host = host.encode("idna").decode() if not host.isascii() else host
    path, query = (quote(text, safe="%/:=&?~+!$,;'@()*[]|") for text in (parts.path, parts.query))
    return urlunsplit((parts.scheme, host, path or "/", query, ""))


def _whole_number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdecimal() else None


def _too_large(limit: int, size: int | None = None) -> NotReadError:
    return NotReadError(f"image of {size or f'more than {limit}'} bytes; expected at most {limit}")


def _reason(error: Any, url: str) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}".strip()
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    return words_of(error, url)


def shown(url: str) -> str:
    """A path or URL for messages: without secrets, in one line."""
    return " ".join(public_url(url).split())[:500]
