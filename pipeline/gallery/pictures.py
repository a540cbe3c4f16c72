"""The pictures of a gallery: the originals, read again from the input, and those that verification made; as small WebP."""

import contextlib
import io
import tarfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from typing import Any, Literal

from PIL import Image

from pez.errors import UserError
from pez.images import ImageError, decode_image
from pipeline.gallery.selection import UNIT, Selection
from pipeline.sources.ahead import ahead
from pipeline.sources.base import Item, LateCaption, Source, Unit, UnitError
from pipeline.sources.choice import image_source_of
from pipeline.sources.tar_stream import open_tar
from pipeline.table import PromptTable

Which = Literal["original", "regenerated"]
_THREADS = 4
_QUALITY = 78


def thumbnails(
    table: PromptTable, selection: Selection, side: int, notes: list[str]
) -> Iterator[tuple[int, Which, bytes]]:
    """Small pictures of the rows.

    Args:
        side: pixels of the longer side, at most.
        notes: gets a line for each unit whose pictures cannot be read; its rows have none.

    Yields:
        (index of the row, which picture, WebP).
    """
    rows_of: dict[int, dict[str, int]] = defaultdict(dict)
    for index, row in enumerate(selection.rows):
        rows_of[row[UNIT]][row["key"]] = index
    try:
        source = image_source_of(table.settings)
    except UserError:  # of texts
        return
    kept = table.names("_regenerated", ".tar")

    def pictures() -> Iterator[tuple[int, Which, bytes]]:
        for number, keys in rows_of.items():
            unit = selection.units[number]
            try:
                for item in items_of(source, unit, keys):
                    if item.image is not None:
                        yield keys[item.key], "original", item.image
            except UnitError as error:
                notes.append(f"{error}; its images are left out")
            if unit.stem in kept:
                try:
                    for key, data in _regenerated(table, unit, keys):
                        yield keys[key], "regenerated", data
                except UnitError as error:
                    notes.append(f"{error}; its generated images are left out")

    def small(found: tuple[int, Which, bytes]) -> tuple[int, Which, bytes | None]:
        index, which, data = found
        with contextlib.suppress(ImageError, OSError):
            return index, which, thumbnail(data, side)
        return index, which, None

    for index, which, made in ahead(pictures(), small, _THREADS, 4 * _THREADS):
        if made is not None:
            yield index, which, made


def thumbnail(data: bytes, side: int) -> bytes:
    """An encoded image as WebP of at most so many pixels a side; a smaller one keeps its size.

    Raises:
        ImageError: it does not become a picture.
    """
    image = decode_image(data)
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=_QUALITY, method=4)
    return buffer.getvalue()


def items_of(source: Source, unit: Unit, keys: Collection[str]) -> Iterator[Item]:
    """The items of some keys; no more of the unit is read than up to the last of them."""
    left = set(keys)
    some: Any = getattr(source, "read_keys", None)
    for item in some(unit, left) if some else source.read(unit, Counter()):
        if item.key in left and not isinstance(item, LateCaption):
            left.remove(item.key)
            yield item
            if not left:
                return


def _regenerated(table: PromptTable, unit: Unit, keys: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """The first picture that was made of each prompt and kept."""
    path = table.at(f"_regenerated/{unit.stem}.tar")
    left = set(keys)
    with open_tar(path if table.local else table.fs.unstrip_protocol(path), path) as tar:
        for member in tar:
            key = _key_of(member, left)
            if key is not None:
                left.remove(key)
                yield key, tar.read(member)
                if not left:
                    return


def _key_of(member: tarfile.TarInfo, keys: Collection[str]) -> str | None:
    if not member.isfile() or not member.name.endswith(".png"):
        return None
    stem = member.name.removesuffix(".png")
    before, dot, number = stem.rpartition(".")
    return stem if stem in keys else before if dot and number.isdecimal() and before in keys else None
