"""What to read: patterns to a list of shards.

Everything fsspec opens is a shard's address: local paths, s3://, gs://, hf://, http(s)://.
"""

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import braceexpand
import fsspec

from pipeline.errors import InputError as InputError


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


def expand_shards(patterns: Sequence[str]) -> list[Shard]:
    """Expand what a user typed into shards.

    Args:
        patterns: addresses with braces (`{00000..00999}`) or globs (`*`, `?`, `[..]`), folders (their .tar files), or `@file`
            with one pattern a line.

    Returns:
        shards in the order given, each address once.

    Raises:
        InputError: nothing matches, a local file is missing, or an address of a kind that cannot be opened.
    """
    urls: dict[str, None] = {}
    for pattern in patterns:
        found = _expand(pattern)
        if not found:
            raise InputError(f"no shard matches {pattern!r}; check the path and the quotes around * and {{}}")
        urls.update(dict.fromkeys(found))
    if not urls:
        raise InputError("no input given; expected --input with the address of a tar, or --demo")
    return name_shards(list(urls))


def name_shards(urls: Sequence[str]) -> list[Shard]:
    """Give each address a stem; where two would share one, each gets a hash of its address."""
    stems = [_stem(url) for url in urls]
    times = Counter(stems)
    return [Shard(u, s if times[s] == 1 else hashed_stem(u)) for u, s in zip(urls, stems, strict=True)]


def hashed_stem(url: str) -> str:
    return f"{_stem(url)}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def _stem(url: str) -> str:
    name = urlsplit(url).path.rsplit("/", 1)[-1] if "://" in url else Path(url).name
    for end in (".gz", ".tgz", ".tar"):
        name = name.removesuffix(end)
    return name.lstrip("._") or "shard"  # directory readers skip names that begin with . or _


def _expand(pattern: str) -> list[str]:
    if pattern.startswith("@"):
        return _listed(Path(pattern[1:]))
    if "://" not in pattern and os.path.exists(pattern):
        path = Path(pattern)
        return sorted(str(p) for p in path.glob("*.tar")) if path.is_dir() else [pattern]
    return [url for braced in braceexpand.braceexpand(pattern) for url in _globbed(braced)]


def _listed(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise InputError(f"cannot read the list of shards {file}: {error.strerror}") from error
    patterns = [line for line in lines if line and not line.startswith("#")]
    nested = next((p for p in patterns if p.startswith("@")), None)
    if nested:
        raise InputError(f"{file} names another list, {nested!r}; expected addresses of shards")
    return [url for pattern in patterns for url in _expand(pattern)]


def _globbed(url: str) -> list[str]:
    if url.startswith("pipe:"):
        raise InputError(f"{url!r} would run a shell command; give an address that fsspec opens, like s3:// or http://")
    protocol = url.split("://", 1)[0] if "://" in url else "file"
    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError as error:
        raise InputError(f"{url!r}: {protocol}:// is not a kind of address that fsspec knows") from error
    except ImportError as error:
        raise InputError(missing_driver(url, error)) from error
    if not any(c in url for c in "*?[") or protocol in ("http", "https"):
        if protocol == "file" and not os.path.exists(url.removeprefix("file://")):
            raise InputError(f"no file {url}; expected a tar")
        return [url]
    try:
        fs, path = fsspec.core.url_to_fs(url, **listing_options(url))
        return sorted(fs.unstrip_protocol(p) if protocol != "file" else p for p in fs.glob(path))
    except Exception as error:  # each filesystem has its own errors
        raise InputError(f"cannot list {url!r}: {_one_line(error)}") from error


def missing_driver(url: str, error: ImportError) -> str:
    """What to install for an address, in one line."""
    protocol = url.split("://", 1)[0]
    extra = {"s3a": "s3", "gcs": "gs", "https": "http"}.get(protocol, protocol)
    advice = f"pip install -e '.[{extra}]'" if extra in ("s3", "gs", "hf", "http") else "install it"
    return f"{url!r}: the driver of {protocol}:// is missing ({_one_line(error)}); {advice}"


def listing_options(url: str) -> dict[str, bool]:
    """fsspec keeps listings; ours must be fresh."""
    return {"use_listings_cache": False} if "://" in url else {}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
