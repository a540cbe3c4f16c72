"""A picture is what people see of it: its kind, its mode and what else its file says cost nothing."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin
from samples_on_disk import encoded

from pez.images import ImageError, decode_image, to_rgb

# Its four corners tell how it was turned.
CORNERS = Image.new("RGB", (40, 24), (128, 128, 128))
for _corner, _color in {(0, 0): "red", (20, 0): "lime", (0, 12): "blue", (20, 12): "yellow"}.items():
    CORNERS.paste(_color, (*_corner, _corner[0] + 20, _corner[1] + 12))
TURNED = CORNERS.transpose(Image.Transpose.ROTATE_90)  # as a camera held sideways stores it: orientation 6


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(kind: bytes, data: bytes, png: bytes | None = None, last: bool = False) -> bytes:
    """A PNG with one more chunk, behind its header or before its end."""
    png = png or encoded(TURNED)
    at = len(png) - 12 if last else 33
    return png[:at] + chunk(kind, data) + png[at:]


def exif_block(kind: int, count: int, value: bytes, endian: str = "<", before: bytes = b"") -> bytes:
    """An EXIF directory whose orientation has some type, behind other entries."""
    entries = before + struct.pack(endian + "HHI", 0x0112, kind, count) + value.ljust(4, b"\0")
    head = b"II*\0" if endian == "<" else b"MM\0*"
    return head + struct.pack(endian + "IH", 8, len(entries) // 12) + entries + bytes(4)


SIDEWAYS = exif_block(3, 1, b"\6\0")
ODD_ENTRIES = b"".join(
    (
        struct.pack("<HHII", 0x010F, 2, 2**31, 2**31),  # make: text that lies elsewhere
        struct.pack("<HHII", 0x011A, 5, 1, 0xFFFFFFF0),  # resolution
        struct.pack("<HHII", 0x8769, 2, 4, 8),  # a directory that is text, and this one again
    )
)


def with_segment(marker: int, data: bytes, jpeg: bytes | None = None) -> bytes:
    jpeg = jpeg or encoded(TURNED, "JPEG", quality=95)
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data + jpeg[2:]


def assert_upright(data: bytes, off: int = 60) -> None:
    image = decode_image(data)
    assert (image.mode, image.size) == ("RGB", CORNERS.size)
    for at in ((6, 4), (34, 4), (6, 20), (34, 20)):
        assert np.abs(np.asarray(image, int)[at[::-1]] - np.asarray(CORNERS, int)[at[::-1]]).max() <= off, at


def assert_stored(data: bytes) -> None:
    image = decode_image(data)
    assert (image.mode, image.size) == ("RGB", TURNED.size)
    assert np.abs(np.asarray(image, int)[6, 4] - np.asarray(TURNED, int)[6, 4]).max() <= 60


@pytest.mark.parametrize(
    "data",
    [
        with_chunk(b"iTXt", b"Comment\0\0\0\0\0" + b"x" * (2 * 2**20)),
        with_chunk(b"tEXt", b"Comment\0" + b"x" * (2 * 2**20)),
        with_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80 * 2**20))),
        with_chunk(b"zTXt", b"Comment\0\0no deflate"),
        with_chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(3 * 2**20))),
        with_chunk(b"iCCP", b"profile\0\7odd method"),
        with_chunk(b"iCCP", b""),
        with_chunk(b"eXIf", b"no TIFF at all"),
        with_chunk(b"eXIf", b""),
        with_chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
        with_chunk(b"eXIf", exif_block(2, 2, b"6\0")),
        with_chunk(b"eXIf", exif_block(3, 1, b"\x63\0")),
        with_chunk(b"eXIf", exif_block(5, 1, b"\x08\0\0\0")),
        with_chunk(b"pHYs", b"short"),
        with_chunk(b"acTL", b"short"),
        with_chunk(b"fcTL", b"short"),
        with_chunk(b"cHRM", b""),
        with_chunk(b"sRGB", b""),
        with_chunk(b"gAMA", b""),
        with_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 8\nzz"),
        with_chunk(b"tIME", b"x", last=True),
        with_segment(0xE1, b"Exif\0\0no TIFF"),
        with_segment(0xE1, b"Exif\0\0" + exif_block(2, 2, b"6\0")),
        with_segment(0xE1, b"Exif\0\0" + exif_block(3, 1, b"\0\0")),
        with_segment(0xE0, b"JFIF"),
        with_segment(0xEE, b"Adobe"),
        with_segment(0xE2, b"MPF\0MM\0*\0\0\0\x08\0\1\0\0"),
        with_segment(0xE2, b"MPF\0"),
        with_segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed"),
        with_segment(0xED, b"Photoshop 3.0\x008BIM"),
        encoded(TURNED, "WEBP", exif=b"Exif\0\0no TIFF", lossless=True),
        encoded(TURNED, "AVIF", exif=b"Exif\0\0" + exif_block(3, 1, b"\1\0"), quality=95).replace(b"II*\0", b"no T"),
    ],
    ids=range(32),
)
def test_metadata_that_cannot_be_read_cost_no_picture(data: bytes) -> None:
    assert_stored(data)


@pytest.mark.parametrize(
    "data",
    [
        with_chunk(b"eXIf", SIDEWAYS),
        with_chunk(b"eXIf", SIDEWAYS, last=True),
        with_chunk(b"eXIf", exif_block(3, 1, b"\0\6", ">")),
        with_chunk(b"eXIf", exif_block(4, 1, b"\6")),
        with_chunk(b"eXIf", exif_block(3, 1, b"\6\0", before=ODD_ENTRIES)),
        with_chunk(b"eXIf", b"Exif\0\0" + SIDEWAYS),
        with_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n  34\n" + SIDEWAYS.hex().encode())),
        with_chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
        with_chunk(b"eXIf", SIDEWAYS, with_chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(3 * 2**20)))),
        with_segment(0xE1, b"Exif\0\0" + SIDEWAYS),
        with_segment(0xE1, b"Exif\0\0" + exif_block(3, 1, b"\6\0", before=ODD_ENTRIES)),
        with_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<tiff:Orientation>6</tiff:Orientation>"),
        encoded(TURNED, "WEBP", exif=b"Exif\0\0" + exif_block(3, 1, b"\6\0", before=ODD_ENTRIES), lossless=True),
        encoded(TURNED, "AVIF", exif=b"Exif\0\0" + SIDEWAYS, quality=95),
        encoded(TURNED, "TIFF", tiffinfo={0x0112: 6}),
        encoded(TURNED, "TIFF", tiffinfo={0x0112: 6}, compression="tiff_lzw"),
    ],
    ids=range(16),
)
def test_a_turned_picture_is_upright_whatever_else_its_metadata_hold(data: bytes) -> None:
    assert_upright(data)


def test_metadata_do_not_reach_memory() -> None:
    bomb = with_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(200 * 2**20)))
    many = b"".join(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**20))) for _ in range(200))
    many = bomb[:33] + many + bomb[33:]
    tracemalloc.start()
    assert_stored(many)
    assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"])
@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_keeps_its_pixels_and_loses_what_cannot_be_read(compression: str | None, big: bool) -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[270], info[0x8769], info[34665 + 1] = "a description", 3, "x" * 5000
    options = {"compression": compression} if compression else {}
    data = bytearray(encoded(CORNERS, "TIFF", tiffinfo=info, big_tiff=big, **options))
    plain = decode_image(encoded(CORNERS, "TIFF", big_tiff=big, **options))
    for tag in (
        270,
        282,
        283,
        0x8769,
    ):  # description, resolutions and EXIF of a type that is none, far outside the file
        at = data.find(struct.pack("<H", tag), 8)
        if at > 0 and tag not in (282, 283):
            data[at + 2 : at + 4] = b"\x63\0"
        elif at > 0:
            data[at + (12 if big else 8) :][:4] = b"\xff\xff\xff\x7f"
    assert decode_image(bytes(data)).tobytes() == plain.tobytes()


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB"]
)
def test_a_picture_of_any_mode_becomes_rgb_and_is_left_as_it_is(mode: str) -> None:
    source = {"La": "LA", "RGBa": "RGBA"}.get(mode, "RGB")
    if mode == "LAB":
        image = Image.merge("LAB", [Image.new("L", (8, 6), v) for v in (255, 128, 128)])
    else:
        image = Image.new("RGB", (8, 6), "white").convert(source if source != "RGB" else mode)
        image = image if image.mode == mode else image.convert(mode)
    before = (image.mode, image.size, image.tobytes(), dict(image.info))
    rgb = to_rgb(image)
    assert (rgb.mode, rgb.size) == ("RGB", (8, 6))
    assert np.asarray(rgb).min() >= 250
    assert (image.mode, image.size, image.tobytes(), dict(image.info)) == before
    rgb.putpixel((0, 0), (1, 2, 3))
    assert image.tobytes() == before[2], "a picture of its own"


def test_a_palette_with_transparency_is_the_picture_that_it_is_saved_as() -> None:
    colours = np.random.default_rng(0).integers(0, 255, (20, 30, 4), np.uint8)
    image = Image.fromarray(colours, "RGBA").convert("P")
    assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(decode_image(encoded(image))))


@pytest.mark.parametrize(
    ("values", "mode"),
    [
        (np.full((6, 8), 51400, np.uint16), "I;16"),
        (np.full((6, 8), 51400, ">u2"), "I;16B"),
        (np.full((6, 8), 51400, np.int32), "I"),
        (np.full((6, 8), 200, np.int32), "I"),
        (np.full((6, 8), 200, np.float32), "F"),
        (np.full((6, 8), 200 / 255, np.float32), "F"),
    ],
)
def test_greys_of_more_bits_are_scaled_to_eight(values: np.ndarray, mode: str) -> None:
    image = Image.frombytes(mode, (8, 6), values.tobytes())
    assert to_rgb(image).getpixel((3, 3)) == (200, 200, 200)


def test_transparent_is_white_whatever_says_so() -> None:
    clear = Image.new("RGB", (8, 6), (0, 0, 200))
    palette = clear.convert("P", palette=Image.Palette.ADAPTIVE)
    palette.info["transparency"] = palette.getpixel((0, 0))
    grey = Image.fromarray(np.full((6, 8), 500, np.uint16))
    for image in (Image.new("RGBA", (8, 6), (0, 0, 200, 0)), Image.new("LA", (8, 6), (9, 0)), palette):
        assert to_rgb(image).getpixel((1, 1)) == (255, 255, 255)
    for data in (encoded(clear, transparency=(0, 0, 200)), encoded(grey, transparency=500), encoded(palette)):
        assert decode_image(data).getpixel((1, 1)) == (255, 255, 255)


def test_a_picture_that_was_opened_becomes_what_its_bytes_become() -> None:
    for data in (
        with_segment(0xE1, b"Exif\0\0" + SIDEWAYS),
        with_chunk(b"eXIf", SIDEWAYS),
        encoded(TURNED, "TIFF", tiffinfo={0x0112: 6}),
        with_chunk(b"eXIf", b"no TIFF"),
    ):
        once = to_rgb(Image.open(io.BytesIO(data)))
        assert once.tobytes() == decode_image(data).tobytes()
        assert to_rgb(once).tobytes() == once.tobytes(), "done twice it is the same"
        assert once.size == decode_image(data).size == to_rgb(once).size


def test_a_picture_that_cannot_be_loaded_says_so_in_one_line() -> None:
    for image in (Image.new("RGB", (0, 5)), Image.open(io.BytesIO(encoded(CORNERS)[:60]))):
        with pytest.raises(ImageError, match=r"0x5 pixels; expected an image|cannot read the image: ") as error:
            to_rgb(image)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), "JPEG 2000"),
        (b"\0\0\1\0" + bytes(100), "ICO"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "SVG"),
        (b"8BPS\0\1" + bytes(100), "PSD"),
    ],
)
def test_a_kind_that_is_not_read_is_named(data: bytes, kind: str) -> None:
    with pytest.raises(
        ImageError, match=f"not one of JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, HEIC, JPEG XL, but {kind}"
    ):
        decode_image(data)


def test_a_picture_after_another_in_one_file_is_not_looked_at() -> None:
    blue = Image.new("RGB", CORNERS.size, "blue")
    assert_upright(encoded(CORNERS, "MPO", save_all=True, append_images=[blue], quality=95))
    assert_upright(encoded(CORNERS, "AVIF", save_all=True, append_images=[blue], quality=95))
    frames = encoded(CORNERS, "PNG", save_all=True, append_images=[blue], default_image=False)
    assert isinstance(Image.open(io.BytesIO(frames)), PngImagePlugin.PngImageFile)
    assert_upright(frames)


def test_pillow_keeps_its_own_limits() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
