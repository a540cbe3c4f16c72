"""One tar to samples: every key once, each with an image or with the reason why there is none."""

import dataclasses
import gzip
import io
import math
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

from pez.images import ImageError, decode_image
from pipeline.shards import InputError, Shard
from pipeline.streams import ByteStream

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
CAPTION_ENDINGS = ("txt", "caption", "text")
MAX_IMAGE_BYTES = 256 * 2**20
MAX_CAPTION_BYTES = 2**20

_MAX_HEADER_BYTES = 2**15
_READ_AT_ONCE = 2**17
_READ_WHOLE = (  # by tarfile, as part of the next member's header
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


__all__ = ["ImageError", "Sample", "ShardError", "decode_image", "read_samples"]


class ShardError(InputError):
    """A shard that cannot be read to its end; none of it is published."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One key of a shard, as found."""

    index: int
    """order of the keys in the shard"""
    key: str
    image: bytes | None = dataclasses.field(repr=False)
    caption: str | None
    status: str = "ok"
    """ok, no_image or bad_image"""
    problem: str | None = None
    """why it is not ok"""


@dataclasses.dataclass
class _Group:
    index: int
    image: bytes | None = None
    caption: str | None = None
    problem: str | None = None
    emitted: bool = False
    others: list[str] = dataclasses.field(default_factory=list)

    def sample(self, key: str) -> Sample:
        if self.problem is not None:
            return Sample(self.index, key, None, self.caption, "bad_image", self.problem)
        if self.image is None:
            found = ", ".join(self.others[:4]) or "a caption"
            return Sample(self.index, key, None, self.caption, "no_image", f"no image of this key; found {found}")
        return Sample(self.index, key, self.image, self.caption)


def read_samples(
    shard: Shard,
    image_key: str | None = None,
    caption_key: str | None = None,
    left_out: Counter[str] | None = None,
) -> Iterator[Sample]:
    """Stream a shard.

    Args:
        image_key: ending of the members that hold the image ("jpg", "left.jpg"); None = any usual image ending.
        caption_key: the same for captions; None = txt, caption or text.
        left_out: counts, by reason, the members that are in no sample although they could have been meant to be.

    Yields:
        one sample a key. A key is a member's name without its ending, `a/photo.1.jpg` is `a/photo.1` (with an ending of
        two parts given, that ending counts). It is a name only and never a path: `./a`, `../a` and `/a` are kept as they
        are. Of several images or captions of a key the first is taken. A key that comes again adds nothing once its
        image was seen. Links are not followed, and sparse files not read: their keys are samples without an image.

    Raises:
        ShardError: not readable, not a tar, damaged or cut short: what looks like the end of a tar is not always one.
    """
    image_endings = (image_key.lower(),) if image_key else IMAGE_ENDINGS
    caption_endings = (caption_key.lower(),) if caption_key else CAPTION_ENDINGS
    endings = (*image_endings, *caption_endings)
    left_out = Counter() if left_out is None else left_out
    groups: dict[str, _Group] = {}
    current: str | None = None
    with open_tar(shard.source, shard.url) as tar:
        for member in tar:
            if member.isdir():
                continue
            key, ending = split_name(member.name, endings)
            if key is None or not (member.isfile() or member.issym() or member.islnk()):
                left_out["hidden, without an ending, or not a file"] += 1
                continue
            if current is not None and key != current and groups[current].image is not None:
                yield from _emit(groups, current)
            current = key
            group = groups.setdefault(key, _Group(len(groups)))
            if group.emitted:
                left_out["of a key that was done"] += 1
            elif not member.isfile():
                group.others.append(f"a link to {_text(member.linkname)[:200]}")
            elif ending in image_endings:
                if group.image is not None or group.problem is not None:
                    left_out["another image of its key"] += 1
                elif member.issparse():
                    group.problem = "the image is stored as a sparse file; make the tar without --sparse"
                elif member.size > MAX_IMAGE_BYTES:
                    group.problem = f"image of {member.size} bytes; expected at most {MAX_IMAGE_BYTES}"
                else:
                    group.image = tar.read(member)
            elif ending in caption_endings:
                if group.caption is not None:
                    left_out["another caption of its key"] += 1
                elif member.size > MAX_CAPTION_BYTES or member.issparse():
                    left_out[f"caption of more than {MAX_CAPTION_BYTES} bytes"] += 1
                else:
                    group.caption = tar.read(member).decode("utf-8", errors="replace").strip()
            else:
                group.others.append(ending or "a file without an ending")
    for key in groups:
        yield from _emit(groups, key)


def _emit(groups: dict[str, _Group], key: str) -> Iterator[Sample]:
    group = groups[key]
    if not group.emitted:
        yield group.sample(key)
        group.emitted, group.image, group.caption = True, None, None


def split_name(name: str, endings: tuple[str, ...]) -> tuple[str | None, str]:
    """A member's name to its key and lower-case ending; hidden files and names without an ending have no key."""
    name = _text(name)
    base = name.rsplit("/", 1)[-1]
    if base.startswith(".") or "." not in base:
        return None, ""
    for ending in endings:
        if "." in ending and base.lower().endswith("." + ending):
            return name[: -len(ending) - 1], ending
    key, _, ending = name.rpartition(".")
    return key, ending.lower()


def _text(name: str) -> str:
    """A name that is not UTF-8 with its odd bytes written as \\xff: Arrow takes no surrogates, and names stay apart."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class open_tar:  # noqa: N801 - reads as a function
    """A tar as a stream of members, which notices when the stream is not a whole tar.

    Args:
        source: what is opened; it may hold a signature or a password.
        url: what it is called in messages; default = the source.
    """

    def __init__(self, source: str, url: str | None = None) -> None:
        self.source, self.url = source, url or source

    def __enter__(self) -> "open_tar":
        self.file: ByteStream | None = None
        try:
            self.file = ByteStream(self.source)
            head = self.file.read(2)
            head += self.file.read(1) if len(head) == 1 else b""
            self.stream = _Watched(self.file, head)
            if head == b"\x1f\x8b":
                self.stream.reads_at_end = -math.inf  # an unpacker asks on and on
                self.stream = _Watched(gzip.GzipFile(fileobj=self.stream), b"")
            self.tar = tarfile.open(fileobj=self.stream, mode="r|", bufsize=_READ_AT_ONCE, tarinfo=_Member)
        except Exception as error:
            self.__exit__()
            raise self._error(error) from error
        return self

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        members = iter(self.tar)
        while (member := self._next(members)) is not None:
            yield member
            self.tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every member it has seen
        end = self.tar.offset
        if self.stream.last_content > end or self.stream.position < end + 2 * tarfile.BLOCKSIZE:
            raise ShardError(f"{self.url} is damaged or cut short after {end} bytes; make or copy it again")

    def read(self, member: tarfile.TarInfo) -> bytes:
        try:
            file = self.tar.extractfile(member)
            assert file is not None, "a regular file"
            data = file.read()
        except Exception as error:
            raise self._error(error) from error
        if len(data) != member.size:
            raise ShardError(f"{self.url} is cut short inside {member.name!r}; make or copy it again")
        return data

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def _next(self, members: Iterator[tarfile.TarInfo]) -> tarfile.TarInfo | None:
        try:
            member = next(members, None)
            if member is None:
                self.stream.drain()
            return member
        except Exception as error:  # tarfile raises nearly anything on hostile headers
            raise self._error(error) from error

    def _error(self, error: BaseException) -> ShardError:
        # fsspec says "not found" of a server that refuses, and keeps what the server said as the cause.
        told = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
        reason = " ".join(str(told).split()) or type(told).__name__
        if isinstance(told, FileNotFoundError) and told.errno is None:  # of a store; its words are the path alone
            reason = "there is no such file"
        if isinstance(error, (OSError, EOFError, ImportError)):
            return ShardError(f"cannot read {self.url}: {reason}")
        return ShardError(f"{self.url} is not a tar, or damaged ({reason}); expected a WebDataset shard")


class _Member(tarfile.TarInfo):
    """A member whose header has a bounded size."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        member = super().frombuf(buf, encoding, errors)
        if member.type in _READ_WHOLE and member.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {member.size} bytes; expected at most {_MAX_HEADER_BYTES}")
        return member


class _Watched(io.RawIOBase):
    """Reads through, and knows where the last byte other than zero was."""

    def __init__(self, file: IO[bytes] | Any, head: bytes) -> None:
        self.file, self.head = file, head
        self.position = 0
        self.last_content = 0
        self.reads_at_end: float = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self.head + self.file.read(size - len(self.head) if size >= 0 else -1)
        self.head = b""
        content = len(data.rstrip(b"\0"))
        if content:
            self.last_content = self.position + content
        self.position += len(data)
        self.reads_at_end += not data
        if self.reads_at_end > 100:  # tarfile walks through a member of 2**90 bytes in steps, also behind the end
            raise EOFError(f"it ends after {self.position} bytes, inside a member")
        return data

    def drain(self) -> None:
        while self.read(2**20):
            pass
