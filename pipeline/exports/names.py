"""Names of exported files. Keys may hold anything; a path made of one stays below its folder and is readable everywhere."""

import hashlib
import re

from pez.images import kind_of

_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"\\|?*\ud800-\udfff]')
_LONGEST = 150  # bytes of a part of a path; file systems allow 255
_EXTENSIONS = {"JPEG": "jpg", "TIFF": "tif", "JPEG XL": "jxl", "JPEG 2000": "jp2"}


def path_of(key: str, dots: bool = True) -> str:
    """A relative path for a key. Keys that cannot be paths are changed, and get a hash so that they stay distinct.

    Args:
        dots: keep the dots of the last part; a WebDataset ends a key at the first one.
    """
    parts = [_part(part) for part in key.split("/")]
    if not dots:
        parts[-1] = parts[-1].replace(".", "_")
    path = "/".join(parts)
    if path == key:
        return path
    return f"{path}-{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:10]}"


def _part(part: str) -> str:
    part = _UNSAFE.sub("_", part).strip(" ")
    if part.startswith("."):  # hidden, or a parent folder
        part = "_" + part[1:].lstrip(".")
    return part.encode()[:_LONGEST].decode(errors="ignore").rstrip(" .") or "_"


def extension_of(image: bytes) -> str:
    """The usual extension of an encoded image, by its first bytes; img if its format is unknown."""
    kind = kind_of(image)
    return "img" if kind is None else _EXTENSIONS.get(kind, kind.lower())
