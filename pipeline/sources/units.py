"""Names of units: each input file gets a unique and stable stem, the base name of its output files."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.sources.base import Unit
from pipeline.urls import INPUT_EXTENSIONS

_LONGEST_STEM = 180


def name_units(urls: Sequence[str], sources: Sequence[str] | None = None) -> list[Unit]:
    """Give each URL a stem; a hash distinguishes URLs that would share one.

    Args:
        urls: public URLs.
        sources: the URLs to open, in the same order; default = the public URLs.
    """
    stems = [_stem(url) for url in urls]
    times = Counter(stem.lower() for stem in stems)  # some file systems are not case-sensitive
    return [
        Unit(url, stem if times[stem.lower()] == 1 else hashed_stem(url), source=source)
        for url, stem, source in zip(urls, stems, sources or urls, strict=True)
    ]


def hashed_stem(url: str) -> str:
    """A stem that is unique to a URL."""
    return f"{_stem(url)}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def _stem(url: str) -> str:
    name = urlsplit(url).path.rsplit("/", 1)[-1] if "://" in url else Path(url).name
    extensions = sorted(INPUT_EXTENSIONS, key=len, reverse=True)
    extension = next((end for end in extensions if name.lower().endswith(end)), "")
    name = name[: len(name) - len(extension)]
    if len(name.encode()) > _LONGEST_STEM:  # file names are limited to 255 bytes and are longer than the stem
        name = f"{name.encode()[: _LONGEST_STEM // 2].decode(errors='ignore')}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    return name.lstrip("._") or "shard"  # readers of folders skip names that begin with . or _
