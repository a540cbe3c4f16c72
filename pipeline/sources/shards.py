"""The unit of work: one tar of images, its name and its address."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from pez.errors import UserError as UserError
from pipeline.addresses import SHARD_EXTENSIONS, redact

_LONGEST_STEM = 180


@dataclasses.dataclass(frozen=True)
class Shard:
    """One tar of images: the unit of work, of output and of resume."""

    url: str
    """the shard's public name: rows, reports and messages show it, and it tells one shard from another"""
    stem: str
    """names the output files; unique in a job"""
    part: int | None = None
    """which, where this is a part of the shard: that of the samples whose index leaves it when divided by `parts`"""
    parts: int = 1
    """in which the shard is captioned; they change no row"""
    source: str = dataclasses.field(default="", repr=False, compare=False)
    """what is opened: the url, or one with a signature or password in it, which is never shown"""

    def __post_init__(self) -> None:
        if not self.source:
            object.__setattr__(self, "source", self.url)

    @property
    def which(self) -> str:
        """What to say behind the shard's name, of a part."""
        return "" if self.part is None else f", part {self.part}-of-{self.parts}"


def name_shards(urls: Sequence[str], sources: Sequence[str] | None = None) -> list[Shard]:
    """Give each address a stem; where two would share one, each gets a hash of its address.

    Args:
        urls: public addresses.
        sources: what is opened, in their order; default = the addresses.
    """
    stems = [_stem(url) for url in urls]
    times = Counter(stem.lower() for stem in stems)  # some file systems take A and a for one name
    return [
        Shard(url, stem if times[stem.lower()] == 1 else hashed_stem(url), source=source)
        for url, stem, source in zip(urls, stems, sources or urls, strict=True)
    ]


def hashed_stem(url: str) -> str:
    return f"{_stem(url)}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def _stem(url: str) -> str:
    name = urlsplit(url).path.rsplit("/", 1)[-1] if "://" in url else Path(url).name
    extension = next((end for end in SHARD_EXTENSIONS[::-1] if name.lower().endswith(end)), "")
    name = name[: len(name) - len(extension)]
    if len(name.encode()) > _LONGEST_STEM:  # file systems take names of 255 bytes, and ours are longer than the stem
        name = f"{name.encode()[: _LONGEST_STEM // 2].decode(errors='ignore')}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    return name.lstrip("._") or "shard"  # directory readers skip names that begin with . or _


def missing_driver(url: str, error: ImportError) -> str:
    """What to install for an address, in one line."""
    protocol = url.split("://", 1)[0]
    extra = {"s3a": "s3", "gcs": "gs", "https": "http"}.get(protocol, protocol)
    advice = f"pip install -e '.[{extra}]'" if extra in ("s3", "gs", "hf", "http") else "install it"
    return f"{redact(url)!r}: the driver of {protocol}:// is missing ({_one_line(error)}); {advice}"


def listing_options(url: str) -> dict[str, bool]:
    """fsspec keeps listings; ours must be fresh."""
    return {"use_listings_cache": False} if "://" in url else {}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
