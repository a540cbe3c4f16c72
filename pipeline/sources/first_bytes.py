"""What an unexpected file is, judging by its first bytes, and advice on what to do with it."""

import dataclasses
import re
import tarfile
from typing import Any

from pez.images import kind_of

HEAD = 1024
"""number of bytes that are sufficient"""


@dataclasses.dataclass(frozen=True)
class Found:
    """What a file is, if it is not a tar."""

    what: str
    advice: str
    permanent: bool = True
    """False if retrying may help, as for an error page of a server"""


_MAKE_A_TAR = "pass the folder as --input, or put the files of a folder into a tar: tar cf photos.tar photos"
_UNPACK = "unpack it, and " + _MAKE_A_TAR
_TABLE = "write its images into tars, as members like 0001.jpg and 0001.txt"
_PARQUET = (
    "if it contains images, rename it to *.parquet or pass --input-kind table; to shorten the texts of a column: "
    "pez distill --input TABLE --column NAME"
)
_KINDS = (
    (rb"PAR1", "a Parquet table", _PARQUET),
    (rb"ARROW1\0\0", "an Arrow table", _TABLE),
    (rb"\x89HDF\r\n", "an HDF5 file", _TABLE),
    (rb"\x93NUMPY", "a NumPy array", _TABLE),
    (rb"SQLite format 3\0", "an SQLite database", _TABLE),
    (rb"PK(\x03\x04|\x05\x06|\x07\x08)", "a ZIP archive", _UNPACK),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (rb"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (rb"!<arch>\n", "an ar archive", _UNPACK),
    (rb"0707(01|02|07)|\xc7\x71", "a cpio archive", _UNPACK),
    (rb"[\x22-\x28]\xb5\x2f\xfd", "compressed with zstd", "unpack it (zstd -d), or compress it with gzip"),
    (
        rb"[\x50-\x5f]\x2a\x4d\x18",
        "compressed with zstd or lz4",
        "unpack it (zstd -d, lz4 -d), or compress it with gzip",
    ),
    (rb"BZh[1-9]1AY&SY", "compressed with bzip2", "unpack it (bunzip2), or compress it with gzip"),
    (rb"\xfd7zXZ\0", "compressed with xz", "unpack it (xz -d), or compress it with gzip"),
    (rb"]\0\0[\0-\xff]{2}\0?", "compressed with lzma", "unpack it (xz -d), or compress it with gzip"),
    (rb"\x04\x22\x4d\x18", "compressed with lz4", "unpack it (lz4 -d), or compress it with gzip"),
    (rb"\x1f[\x9d\xa0]", "compressed with compress", "unpack it (uncompress), or compress it with gzip"),
    (rb"\x1f\x8b", "compressed with gzip twice", "unpack it once (gunzip)"),
    (rb"%PDF-", "a PDF", "put its images into a tar: tar cf images.tar images"),
    (
        rb"version https://git-lfs\.github\.com/spec/",
        "a git-lfs pointer instead of the file",
        "get the file: git lfs pull",
    ),
    (
        rb"(\.git/annex/objects|/annex/objects)/",
        "a git-annex pointer instead of the file",
        "get the file: git annex get",
    ),
    (rb"....ftyp", "a video or an image in HEIC", _MAKE_A_TAR),
    (rb"\x1aE\xdf\xa3|RIFF....AVI |OggS", "a video", _MAKE_A_TAR),
    (rb"RIFF....WAVE|ID3|fLaC", "a sound", _MAKE_A_TAR),
)
_ERROR_OF_A_STORE = re.compile(rb"<(?:\w+:)?Error>.*?<(?:\w+:)?Code>([\w.]{1,80})</", re.DOTALL)
_TITLE = re.compile(rb"<title[^>]*>(.*?)</title", re.DOTALL | re.IGNORECASE)


def read_head(file: Any) -> bytes:
    """The first HEAD bytes of an open file, or all there are."""
    head = b""
    while len(head) < HEAD and (more := file.read(HEAD - len(head))):
        head += more
    return head


def what_it_is(head: bytes) -> Found | None:
    """What a file with these first bytes is; None if it may be a tar, or is unknown.

    Args:
        head: HEAD bytes, or all there are.
    """
    if begins_a_tar(head):
        return None
    if not head:
        return Found("empty", "copy or make it again", permanent=False)
    if kind := kind_of(head):
        return Found(f"an image ({kind})", _MAKE_A_TAR)
    for pattern, what, advice in _KINDS:
        if re.match(pattern, head, re.DOTALL):
            return Found(what, advice)
    return _page(head)


def _page(head: bytes) -> Found | None:
    """What a server returned instead of a file."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if error := _ERROR_OF_A_STORE.search(text):
        return Found(f"a store's error, {error[1].decode()}", "check the URL and the credentials", permanent=False)
    if re.match(rb"(?i)<(!doctype html|html|head|body|\?xml)", text):
        kind = "an XML document" if text[:5].lower() == b"<?xml" else "an HTML page"
        title = _TITLE.search(text)
        named = f" ({' '.join(title[1].decode('utf-8', 'replace').split())[:80]})" if title else ""
        return Found(
            f"{kind}{named} instead of the file",
            "it may need a login, or be the URL of a page about the file (the Hugging Face hub's files are at /resolve/)",
            permanent=False,
        )
    if re.match(rb'[{\[]\s*("|\{|\]|\})', text):
        return Found(
            "JSON",
            "expected a WebDataset shard; if a server returned an error, check the URL and the credentials",
            permanent=False,
        )
    return None


def begins_a_tar(head: bytes) -> bool:
    """Whether a file with these first bytes may be a tar."""
    if len(head) < tarfile.BLOCKSIZE or not head.strip(b"\0"):
        return bool(head) and not head.strip(b"\0")
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except Exception:  # tarfile can raise anything on hostile headers
        return head[257:262] == b"ustar"  # a damaged one
    return True
