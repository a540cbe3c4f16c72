"""Random tars, and what is expected of them, computed without the code under test."""

import io
import pickle
import tarfile

from hypothesis import strategies as st
from PIL import Image
from samples_on_disk import encoded

PICTURE = Image.new("RGB", (8, 6), (200, 30, 30))
PNG, JPEG = encoded(PICTURE), encoded(PICTURE, "JPEG")
END = b"\0" * 1024

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")  # of those in the random tars
CAPTIONS = ("txt", "caption", "text")


Member = tuple[str, bytes, bytes]  # name, type, content

BASES = st.sampled_from(
    ["a", "b", "photo.1", "é日本", "<b>x</b>", "A", "x y", "line\nbreak", "q" * 120, "__x", "\udcff", "-"]
)
FOLDERS = st.sampled_from(["", "", "", "./", "a/", "a.b/", "../", "/", "deep/er/", ".hidden/"])
ENDINGS = st.sampled_from(
    [
        ".jpg",
        ".JPG",
        ".png",
        ".jpeg",
        ".gif",
        ".txt",
        ".TXT",
        ".caption",
        ".json",
        ".pkl",
        ".",
        "",
        ".tar.gz",
        ".left.jpg",
    ]
)
CONTENTS = st.sampled_from(
    [PNG, JPEG, JPEG[:200], b"", b"caf\xe9 <i>", b"a cat\n", pickle.dumps({"x": 1}), b"\0" * 700]
)
KINDS = st.sampled_from([tarfile.REGTYPE] * 12 + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
NAMES = st.builds(lambda *parts: "".join(parts), FOLDERS, st.sampled_from(["", "", "", "._", "."]), BASES, ENDINGS)
MEMBERS = st.lists(st.tuples(NAMES, KINDS, CONTENTS), max_size=14)
FORMATS = st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


def packed(members: list[Member], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.jpg" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(content))
        end = tar.offset
    return buffer.getvalue()[:end] + END  # without the padding to 10 kB, which may be cut


def key_of(name: str) -> str | None:
    """By the rule as it is told to people; None = of no key."""
    folder, slash, base = name.rpartition("/")
    if base[:1] == "." or base.count(".") == 0:
        return None
    return (folder + slash + ".".join(base.split(".")[:-1])).replace("\udcff", "\\xff")


def expected_keys(members: list[Member]) -> list[str]:
    """Keys by their first member, without those that are beside the image of a shorter key."""
    found: dict[str, list[tuple[bytes, str]]] = {}
    for name, kind, _ in members:
        key = key_of(name)
        if key is not None and kind not in (tarfile.DIRTYPE, tarfile.FIFOTYPE):
            found.setdefault(key, []).append((kind, name.rpartition(".")[2].lower()))
    return [key for key, held in found.items() if not is_beside_an_image(key, held, members)]


def is_beside_an_image(key: str, held: list[tuple[bytes, str]], members: list[Member]) -> bool:
    if any(kind != tarfile.REGTYPE or ending in IMAGES + CAPTIONS for kind, ending in held):
        return False
    folder, slash, base = key.rpartition("/")
    parts = base.split(".")
    shorter = [folder + slash + ".".join(parts[:n]) for n in range(1, len(parts)) if any(parts[:n])]
    return any(has_image(members, one) for one in shorter)


def has_image(members: list[Member], key: str) -> bool:
    return any(
        kind == tarfile.REGTYPE and key_of(name) == key and name.rpartition(".")[2].lower() in IMAGES
        for name, kind, _ in members
    )
