"""Formats that Pillow reads only with a plugin: HEIC (`pillow-heif`) and JPEG XL (`pillow-jxl-plugin`).

The JPEG XL plugin decodes an image when it is opened, so its size is read from the first bytes beforehand (ISO/IEC 18181-1).
"""

import importlib
import io

from PIL import ImageFile

PLUGINS = {
    "HEIC": ("pillow_heif", "HeifImageFile", "pillow-heif", "heic"),
    "JPEG XL": ("pillow_jxl.JpegXLImagePlugin", "JXLImageFile", "pillow-jxl-plugin", "jxl"),
}
"""module, class, package and extra of each format"""


class NoPluginError(Exception):
    """The plugin is not installed."""


def size_before_opening(kind: str, data: bytes) -> tuple[int, int] | None:
    """(width, height), if the format is decoded when opened and the size is known; else None."""
    return _jpeg_xl_size(data) if kind == "JPEG XL" else None


def open_with_plugin(kind: str, data: bytes) -> ImageFile.ImageFile:
    """Open an image.

    Raises:
        NoPluginError: the plugin is missing.
    """
    module, name, package, extra = PLUGINS[kind]
    try:
        opener: type[ImageFile.ImageFile] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise NoPluginError(f"{kind} is read with {package}, which is missing: pip install -e '.[{extra}]'") from error
    image = opener(io.BytesIO(data))
    if not getattr(image, "jpeg", False):  # both decoders turn the image themselves, except a JPEG packed into JPEG XL
        image.info.pop("exif", None)
        image.info.pop("xmp", None)
    return image


_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def _jpeg_xl_size(data: bytes) -> tuple[int, int] | None:
    stream = _codestream(data)
    if stream[:2] != b"\xff\x0a":
        return None
    bits, position = int.from_bytes(stream[2:14], "little"), 0

    def take(count: int) -> int:
        nonlocal position
        value = bits >> position & ((1 << count) - 1)
        position += count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = side()
    ratio = take(3)
    if not ratio:
        return side(), height
    numerator, denominator = _RATIOS[ratio - 1]
    return height * numerator // denominator, height


def _codestream(data: bytes) -> bytes:
    """The start of the codestream, bare or in a container of boxes."""
    position = 0
    while data[:1] == b"\0" and position + 8 <= len(data):
        size, kind, head = int.from_bytes(data[position : position + 4]), data[position + 4 : position + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[position + 8 : position + 16]), 16
        if kind in (b"jxlc", b"jxlp"):
            start = position + head + (4 if kind == b"jxlp" else 0)
            return data[start : start + 32]
        if size < head:
            break
        position += size
    return data[:32]
