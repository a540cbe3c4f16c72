"""Decode images as people see them: bytes, or a PIL image of any mode, to upright RGB. All decoding happens here."""

import io
import re

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from pez.errors import UserError
from pez.metadata import UPRIGHT, orientation_of, without_metadata
from pez.plugin_images import PLUGINS, NoPluginError, open_with_plugin, size_before_opening

MAX_PIXELS = 100_000_000
MAX_ASPECT = 200
"""longest allowed ratio of the sides; models scale the short side to a fixed size, so memory grows with the long one"""

# An explicit list: some of Pillow's formats, such as EPS, run external programs.
_DECODERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}
_KINDS = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM",
    "TIFF": rb"II[*+]\0|MM\0[*+]|II\0\*|MM\*\0",
    "AVIF": rb"....ftyp(avi[fs]|(mif1|msf1|miaf)....(....)*?avi[fs])",
    "HEIC": rb"....ftyp(hei|hev|mif1|msf1)",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG 2000": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ",
    "PSD": rb"8BPS",
    "ICO": rb"\0\0[\x01\x02]\0",
    "SVG": rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg",
}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(UserError):
    """Data that cannot be decoded to an image; the message is one line."""


def decode_image(data: bytes) -> Image.Image:
    """Bytes of any usual image to upright RGB: EXIF orientation applied, alpha over white, 16 bits scaled to 8.

    The format is detected from the bytes. Of an animation or a multi-image file, the first image is used. Metadata other than
    the orientation is not read, so broken metadata does not lose an image.

    Raises:
        ImageError: not an image, truncated, larger than MAX_PIXELS or narrower than MAX_ASPECT.
    """
    kind = kind_of(data)
    if kind is None or kind not in (*_DECODERS, *PLUGINS):
        known = ", ".join((*_DECODERS, *PLUGINS))
        raise ImageError(f"cannot decode the image: not one of {known}, {f'but {kind}' if kind else 'or damaged'}")
    try:
        bare, orientation = without_metadata(data)
        if size := size_before_opening(kind, data):
            _check_size(*size)
        with _DECODERS[kind](io.BytesIO(bare)) if kind in _DECODERS else open_with_plugin(kind, data) as image:
            _check_size(*image.size)
            image.load()  # the first frame of an animation; raises if data is missing
            if orientation == UPRIGHT:
                orientation = orientation_of(image.info.get("exif"), image.info.get("xmp"))
            return _rgb(_turned(image, orientation))
    except ImageError:
        raise
    except NoPluginError as error:
        raise ImageError(f"cannot decode the image: {error}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"more than twice {Image.MAX_IMAGE_PIXELS} pixels; expected at most {MAX_PIXELS}") from error
    except Exception as error:  # decoders can raise anything on hostile bytes
        raise ImageError(f"cannot decode the image: {_reason(error)}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """A PIL image of any mode to upright RGB, as `decode_image` does for bytes; idempotent.

    Args:
        image: not modified, except that Pillow loads its pixels if it was opened but not yet loaded.

    Raises:
        ImageError: it has no pixels, or they cannot be loaded.
    """
    if not image.width or not image.height:
        raise ImageError(f"{image.width}x{image.height} pixels; expected an image")
    try:
        image.load()
        return _rgb(_turned(image, _orientation(image)))
    except Exception as error:  # as above
        raise ImageError(f"cannot read the image: {_reason(error)}") from error


def kind_of(data: bytes) -> str | None:
    """The image format by its first bytes, including formats that are not decoded."""
    head = data[:1024]
    return next((kind for kind, start in _KINDS.items() if re.match(start, head, re.DOTALL)), None)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width}x{height} pixels; expected at most {MAX_PIXELS}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"{width}x{height} pixels; expected an aspect ratio of at most {MAX_ASPECT}:1")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened image."""
    try:
        found = image.getexif().get(0x0112)
    except Exception:  # Pillow parses the whole block
        return orientation_of(image.info.get("exif"), image.info.get("xmp"))
    return found if isinstance(found, int) and 1 <= found <= 8 else UPRIGHT


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _rgb(image: Image.Image) -> Image.Image:
    rgb = _gray(image).convert("RGB") if image.mode.startswith("I") or image.mode == "F" else _colors(image)
    rgb.info = {}  # the orientation has been applied, the transparency removed
    return rgb


def _gray(image: Image.Image) -> Image.Image:
    """16-bit integers (stored in 16 or 32 bits) or floats to 8 bits."""
    values = np.asarray(image).astype(np.float32)
    if image.mode == "F":
        values = np.nan_to_num(values)
        values = values * (255.0 if values.max() <= 1.0 else 1.0)
    elif image.mode != "I" or values.max() > 255:  # Image.convert("I") keeps 8-bit values
        values = values / 257.0
    gray = values.clip(0, 255).round().astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        gray[np.asarray(image) == clear] = 255
    return Image.fromarray(gray)


def _colors(image: Image.Image) -> Image.Image:
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")  # type: ignore[return-value]
    if image.mode == "La":  # converts to nothing else
        image = image.convert("LA")
    if image.has_transparency_data or "a" in image.getbands():  # including a palette with transparency
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    """One line, without the memory addresses in some of Pillow's messages, which differ every time."""
    words = re.sub(r"<[^<>]* object at 0x[0-9a-f]+>", "it", " ".join(str(error).split()))
    return words or type(error).__name__
