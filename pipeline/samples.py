"""One tar to samples: every key once, each with an image or with the reason why there is none."""

import dataclasses
import gzip
import io
import tarfile
from collections.abc import Iterator
from typing import IO, Any

import fsspec
import numpy as np
from PIL import Image, ImageOps

from pipeline.shards import InputError, Shard

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
CAPTION_ENDINGS = ("txt", "caption", "text")
MAX_IMAGE_BYTES = 256 * 2**20
MAX_PIXELS = 100_000_000

# Pillow turns a picture of twice this size into an error by itself; we refuse earlier, with our own words.
Image.MAX_IMAGE_PIXELS = None


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


def read_samples(shard: Shard, image_key: str | None = None, caption_key: str | None = None) -> Iterator[Sample]:
    """Stream a shard.

    Args:
        image_key: ending of the members that hold the image ("jpg", "left.jpg"); None = any usual image ending.
        caption_key: the same for captions; None = txt, caption or text.

    Yields:
        one sample a key. A key is a member's name without its ending, `a/photo.1.jpg` is `a/photo.1` (with an ending of two
        parts given, that ending counts). A key that comes again adds nothing once its image was seen.

    Raises:
        ShardError: not readable, not a tar, damaged or cut short: what looks like the end of a tar is not always one.
    """
    image_endings = (image_key.lower(),) if image_key else IMAGE_ENDINGS
    caption_endings = (caption_key.lower(),) if caption_key else CAPTION_ENDINGS
    endings = (*image_endings, *caption_endings)
    groups: dict[str, _Group] = {}
    current: str | None = None
    with open_tar(shard.url) as tar:
        for member in tar:
            if not member.isfile():
                continue
            key, ending = split_name(member.name, endings)
            if key is None:
                continue
            if current is not None and key != current and groups[current].image is not None:
                yield from _emit(groups, current)
            current = key
            group = groups.setdefault(key, _Group(len(groups)))
            if group.emitted:
                continue
            if ending in image_endings and group.image is None and group.problem is None:
                if member.size > MAX_IMAGE_BYTES:
                    group.problem = f"image of {member.size} bytes; expected at most {MAX_IMAGE_BYTES}"
                else:
                    group.image = tar.read(member)
            elif ending in caption_endings and group.caption is None and member.size <= 2**20:
                group.caption = tar.read(member).decode("utf-8", errors="replace").strip()
            else:
                group.others.append(ending)
    for key in groups:
        yield from _emit(groups, key)


def _emit(groups: dict[str, _Group], key: str) -> Iterator[Sample]:
    group = groups[key]
    if not group.emitted:
        yield group.sample(key)
        group.emitted, group.image, group.caption = True, None, None


def split_name(name: str, endings: tuple[str, ...]) -> tuple[str | None, str]:
    """A member's name to its key and lower-case ending; hidden files and names without an ending have no key."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # Arrow takes no surrogates
    base = name.rsplit("/", 1)[-1]
    if base.startswith(".") or "." not in base:
        return None, ""
    for ending in endings:
        if "." in ending and base.lower().endswith("." + ending):
            return name[: -len(ending) - 1], ending
    key, _, ending = name.rpartition(".")
    return key, ending.lower()


class open_tar:  # noqa: N801 - reads as a function
    """A tar as a stream of members, which notices when the stream is not a whole tar."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __enter__(self) -> "open_tar":
        try:
            fs, path = fsspec.core.url_to_fs(self.url)
            self.file = fs.open(path, "rb", **_opening(self.url))
            head = self.file.read(2)
            self.stream = _Watched(self.file, head)
            if head == b"\x1f\x8b":
                self.stream = _Watched(gzip.GzipFile(fileobj=self.stream), b"")
            self.tar = tarfile.open(fileobj=self.stream, mode="r|")
        except (OSError, EOFError, tarfile.TarError) as error:
            raise self._error(error) from error
        return self

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        try:
            for member in self.tar:
                yield member
                self.tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every member it has seen
            self.stream.drain()
        except (OSError, EOFError, tarfile.TarError) as error:
            raise self._error(error) from error
        end = self.tar.offset
        if self.stream.last_content > end or self.stream.position < end + 2 * tarfile.BLOCKSIZE:
            raise ShardError(f"{self.url} is damaged or cut short after {end} bytes; make or copy it again")

    def read(self, member: tarfile.TarInfo) -> bytes:
        try:
            file = self.tar.extractfile(member)
            assert file is not None, "a regular file"
            data = file.read()
        except (OSError, EOFError, tarfile.TarError) as error:
            raise self._error(error) from error
        if len(data) != member.size:
            raise ShardError(f"{self.url} is cut short inside {member.name!r}; make or copy it again")
        return data

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def _error(self, error: BaseException) -> ShardError:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, tarfile.ReadError):
            return ShardError(f"{self.url} is not a tar, or damaged ({reason}); expected a WebDataset shard")
        return ShardError(f"cannot read {self.url}: {reason}")


class _Watched(io.RawIOBase):
    """Reads through, and knows where the last byte other than zero was."""

    def __init__(self, file: IO[bytes] | Any, head: bytes) -> None:
        self.file, self.head = file, head
        self.position = 0
        self.last_content = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self.head + self.file.read(size - len(self.head) if size >= 0 else -1)
        self.head = b""
        content = len(data.rstrip(b"\0"))
        if content:
            self.last_content = self.position + content
        self.position += len(data)
        return data

    def drain(self) -> None:
        while self.read(2**20):
            pass


def _opening(url: str) -> dict[str, Any]:
    return {"block_size": 8 * 2**20, "cache_type": "readahead"} if "://" in url and not url.startswith("file:") else {}


def decode_image(data: bytes) -> Image.Image:
    """Bytes of any usual image to upright RGB: EXIF orientation applied, alpha over white, 16 bits scaled to 8.

    Raises:
        ValueError: not an image, cut short, or larger than MAX_PIXELS; one line.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO")) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width}x{height} pixels; expected at most {MAX_PIXELS}")
            image.load()  # the first frame of an animation; raises where data is missing
            return _to_rgb(ImageOps.exif_transpose(image))
    except ValueError:
        raise
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise ValueError(f"cannot decode the image: {' '.join(str(error).split()) or type(error).__name__}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, in 16 or 32
        grey = np.asarray(image).astype(np.float32)
        return Image.fromarray((grey / 257.0).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        grey = np.nan_to_num(np.asarray(image)) * (255.0 if np.nanmax(np.asarray(image)) <= 1.0 else 1.0)
        return Image.fromarray(grey.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
