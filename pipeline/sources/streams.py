"""A URL as a stream of bytes, read from start to end, which survives temporary read errors."""

import io
import os
import time
from collections.abc import Sequence
from typing import Any

import fsspec

from pipeline.sources.stores import listing_options

_BLOCK = 8 * 2**20
_SILENCE = 60.0  # seconds without data after which a server is considered dead


class ByteStream(io.RawIOBase):
    """Resumes at the same position when a read fails. The bytes are those of an undisturbed read, or it raises.

    Args:
        url: anything that fsspec opens. HTTP servers without support for ranges are read in one go.

    Raises:
        OSError: not readable after all attempts, or the file has been replaced. Errors of the first opening are those of
            the filesystem, because a missing file is not a temporary error.
    """

    waits: Sequence[float] = (0.2, 1.0, 5.0)
    """seconds before each further attempt; reset after each successful read"""

    def __init__(self, url: str) -> None:
        self.url = url
        self.position = 0
        self.ranges = True
        self.file: Any = self._open()
        self.version = _version(self.file)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes; empty only at the end."""
        waits = iter(self.waits)
        while True:
            try:
                if self.file is None:
                    self._go_on()
                data: bytes = self.file.read(size)
                expected = self.version[0]
                if not data and size and expected is not None and self.position < expected:
                    raise OSError(f"it ended after {self.position} of {expected} bytes")
                self.position += len(data)
                return data
            except _ReplacedError:
                raise
            except Exception as error:  # each filesystem has its own errors
                self._drop()
                if self.ranges and _knows_no_ranges(error):
                    self.ranges = False
                    continue
                wait = next(waits, None)
                if wait is None:
                    reason = " ".join(str(error).split()) or type(error).__name__
                    raise OSError(f"{reason} ({len(self.waits) + 1} attempts at byte {self.position})") from error
                time.sleep(wait)

    def close(self) -> None:
        self._drop()
        super().close()

    def _open(self) -> Any:
        fs, path = fsspec.core.url_to_fs(self.url, **listing_options(self.url), **_client_options(self.url))
        if "://" not in self.url or self.url.startswith("file:"):
            return fs.open(path, "rb")
        return fs.open(path, "rb", block_size=_BLOCK if self.ranges else 0, cache_type="readahead")

    def _go_on(self) -> None:
        file = self._open()
        try:
            version = _version(file)
            # A stream does not know its size; a file read by ranges does.
            if version != self.version and None not in (version[0], self.version[0]):
                raise _ReplacedError(f"the file was replaced while it was read, at byte {self.position}")
            try:
                file.seek(self.position)
            except (ValueError, OSError):  # a stream
                left = self.position
                while left and (skipped := file.read(min(left, _BLOCK))):
                    left -= len(skipped)
                if left:
                    raise OSError(f"it ended after {self.position - left} bytes, before {self.position}") from None
        except BaseException:
            file.close()
            raise
        self.file = file

    def _drop(self) -> None:
        file, self.file = self.file, None
        if file is not None:
            file.close()


class _ReplacedError(OSError):
    """The file is not the one that was opened first."""


def _version(file: Any) -> tuple[Any, ...]:
    """The size of an open file (None if unknown), and what else distinguishes it from another file of the same name."""
    try:
        stat = os.fstat(file.fileno())
        return stat.st_size, stat.st_ino, stat.st_mtime_ns
    except (AttributeError, OSError):  # not a local file
        details = getattr(file, "details", None) or {}
        return getattr(file, "size", None), *(details.get(n) for n in ("ETag", "etag", "generation", "sha256"))


def _knows_no_ranges(error: BaseException) -> bool:
    return isinstance(error, ValueError) and "range requests" in str(error)


def _client_options(url: str) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        return {}
    import aiohttp

    # aiohttp limits a request to five minutes, but a shard is read only as fast as its prompts are learned.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
    protocol = url.split("://", 1)[0]
    return {"client_kwargs": {"timeout": timeout, **fsspec.config.conf.get(protocol, {}).get("client_kwargs", {})}}
