"""A tar as a stream of members, which detects everything that is not a complete tar and says what it is."""

import gzip
import io
import math
import tarfile
from collections.abc import Iterator
from typing import IO, Any

from pipeline.sources.base import UnitError
from pipeline.sources.first_bytes import read_head, what_it_is
from pipeline.sources.stores import unreadable, words_of
from pipeline.sources.streams import ByteStream

_MAX_HEADER_BYTES = 2 * 2**20
"""of the headers before a member: long names, and attributes, of which macOS writes a megabyte"""
_READ_AT_ONCE = 2**17
_READ_WHOLE = (  # read by tarfile as part of the next member's header
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class open_tar:  # noqa: N801 - reads as a function
    """A tar as a stream of members, which detects an incomplete tar.

    Args:
        source: the URL to open; it may contain a signature or a password.
        url: its name in messages; default = the source.
        allow_unfinished: accept a tar that ends after a complete member, without the two blocks of zeros.
    """

    def __init__(self, source: str, url: str | None = None, allow_unfinished: bool = False) -> None:
        self.source, self.url, self.allow_unfinished = source, url or source, allow_unfinished

    def __enter__(self) -> "open_tar":
        self.file: ByteStream | None = None
        self.last: tarfile.TarInfo | None = None
        try:
            head = self._open()
            if found := what_it_is(head):
                inside = "gzip, and inside " if self.packed else ""
                raise UnitError(f"{self.url} is {inside}{found.what}, not a tar: {found.advice}", found.permanent)
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _open(self) -> bytes:
        """Open the stream, decompressed.

        Returns:
            its first bytes.
        """
        try:
            self.file = ByteStream(self.source)
            head = read_head(self.file)
        except Exception as error:  # each filesystem has its own errors
            raise unreadable(self.source, self.url, error) from error
        self.stream = _Watched(self.file, head)
        self.packed = head[:2] == b"\x1f\x8b"
        if self.packed:
            self.stream.reads_at_end = -math.inf  # a decompressor keeps reading at the end
            unpacker = gzip.GzipFile(fileobj=self.stream)
            try:
                head = read_head(unpacker)
            except Exception as error:
                raise self._error(error) from error
            self.stream = _Watched(unpacker, head)
        return head

    def _begin(self) -> None:
        class Member(_Member):  # with its own count
            pass

        self.header = Member
        try:
            self.tar = tarfile.open(fileobj=self.stream, mode="r|", bufsize=_READ_AT_ONCE, tarinfo=Member)  # noqa: SIM115
        except Exception as error:  # tarfile can raise anything on hostile headers
            raise self._error(error) from error

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        members = iter(self.tar)
        while (member := self._next(members)) is not None:
            self.last = member
            yield member
            self.tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every member
        end = self.tar.offset
        if self.stream.last_content > end or (self.last is None and self.stream.position < 2 * tarfile.BLOCKSIZE):
            raise UnitError(f"{self.url} is damaged or truncated after {end} bytes; make or copy it again")
        if self.stream.position < end + 2 * tarfile.BLOCKSIZE and not self.allow_unfinished:
            raise self._unfinished()

    def read(self, member: tarfile.TarInfo) -> bytes:
        try:
            file = self.tar.extractfile(member)
            assert file is not None, "a regular file"
            data = file.read()
        except Exception as error:
            raise self._error(error) from error
        if len(data) != member.size:
            raise UnitError(f"{self.url} is truncated inside {member.name!r}; make or copy it again")
        return data

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def _next(self, members: Iterator[tarfile.TarInfo]) -> tarfile.TarInfo | None:
        self.header.bytes_before = 0
        try:
            member = next(members, None)
            if member is None:
                self.stream.drain()
            return member
        except Exception as error:  # tarfile can raise anything on hostile headers
            if isinstance(error, tarfile.ReadError) and self._ends_inside_padding():
                return None
            raise self._error(error) from error

    def _ends_inside_padding(self) -> bool:
        """Whether the content of the last member is complete, and only zeros after it are missing."""
        self.stream.drain()
        return self.last is not None and (
            self.last.offset_data + self.last.size <= self.stream.position < self.tar.offset
        )

    def _unfinished(self) -> UnitError:
        name = self.url.rsplit("/", 1)[-1]
        padding = max(self.tar.offset - self.stream.position, 0) + 2 * tarfile.BLOCKSIZE
        packed = "gunzip -c" if self.packed else "cat"
        whole = f"({packed} {name}; head -c {padding} /dev/zero) > whole.tar"
        return UnitError(
            f"{self.url} ends after {self.stream.position} bytes, after a complete member but without the two blocks of zeros "
            f"that end a tar: it was truncated there, or never finished; copy or make it again. If nothing is missing, "
            f"{whole} completes it, and --allow-unfinished-tars accepts it as it is"
        )

    def _error(self, error: BaseException) -> UnitError:
        if isinstance(error, (OSError, EOFError, ImportError)):
            return unreadable(self.source, self.url, error)
        if str(error) == "unexpected end of data":  # of tarfile
            return UnitError(f"{self.url} is truncated after {self.stream.position} bytes; make or copy it again")
        return UnitError(
            f"{self.url} is not a tar, or damaged ({words_of(error, self.source)}); expected a WebDataset shard"
        )


class _Member(tarfile.TarInfo):
    """A member whose headers are bounded in size."""

    bytes_before = 0
    """of headers since the last member"""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        member = super().frombuf(buf, encoding, errors)
        if member.type in _READ_WHOLE:
            cls.bytes_before += max(member.size, 0)
            if cls.bytes_before > _MAX_HEADER_BYTES:
                raise tarfile.ReadError(f"a header of {cls.bytes_before} bytes; expected at most {_MAX_HEADER_BYTES}")
        return member


class _Watched(io.RawIOBase):
    """Passes data through, and records the position of the last nonzero byte."""

    def __init__(self, file: IO[bytes] | Any, head: bytes) -> None:
        self.file, self.head = file, head
        self.position = 0
        self.last_content = 0
        self.reads_at_end: float = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            data, self.head = self.head + self.file.read(), b""
        else:
            data, self.head = self.head[:size], self.head[size:]
            if len(data) < size:
                data += self.file.read(size - len(data))
        content = len(data.rstrip(b"\0"))
        if content:
            self.last_content = self.position + content
        self.position += len(data)
        self.reads_at_end += not data
        if self.reads_at_end > 100:  # tarfile skips a member of 2**90 bytes in steps, even beyond the end
            raise EOFError(f"it ends after {self.position} bytes, inside a member")
        return data

    def drain(self) -> None:
        while self.read(2**20):
            pass
