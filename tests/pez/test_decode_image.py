"""Encoded images of every kind become RGB, or an error of one line."""

import io

import numpy as np
import pytest
from PIL import Image
from samples_on_disk import encoded

from pez.images import ImageError, decode_image

PICTURE = Image.new("RGB", (8, 6), (200, 30, 30))
BLUE = Image.new("RGB", (8, 6), "blue")
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
PNG, JPEG = encoded(PICTURE), encoded(PICTURE, "JPEG")


def test_a_kind_is_told_by_its_bytes_and_not_by_its_name() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "MPO"):
        assert decode_image(encoded(PICTURE, kind)).size == (8, 6)


def grey16() -> Image.Image:
    return Image.fromarray(np.full((6, 8), 200 * 257, np.uint16))


@pytest.mark.parametrize(
    ("data", "color"),
    [
        (encoded(PICTURE.convert("CMYK"), "JPEG", quality=95), (200, 30, 30)),
        (encoded(PICTURE.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), (200, 30, 30)),
        (encoded(Image.new("RGBA", (8, 6), (200, 30, 30, 0))), (255, 255, 255)),
        (encoded(Image.new("LA", (8, 6), (0, 128))), (127, 127, 127)),
        (encoded(grey16()), (200, 200, 200)),
        (encoded(Image.new("1", (8, 6), 1)), (255, 255, 255)),
        (encoded(PICTURE, "WEBP", lossless=True), (200, 30, 30)),
        (encoded(PICTURE, "GIF", save_all=True, append_images=[BLUE]), (200, 30, 30)),
        (encoded(PICTURE, "TIFF"), (200, 30, 30)),
        (encoded(PICTURE, "BMP"), (200, 30, 30)),
        (encoded(PICTURE, "PNG", save_all=True, append_images=[BLUE]), (200, 30, 30)),
        (encoded(PICTURE, "WEBP", save_all=True, append_images=[BLUE], lossless=True), (200, 30, 30)),
        (encoded(PICTURE, "MPO", save_all=True, append_images=[BLUE], quality=95), (200, 30, 30)),
        (encoded(PICTURE, transparency=(200, 30, 30)), (255, 255, 255)),
        (encoded(Image.frombytes("I;16B", (8, 6), bytes([200, 200]) * 48), "TIFF"), (200, 200, 200)),
        (encoded(Image.fromarray(np.full((6, 8), 0.5, np.float32)), "TIFF"), (128, 128, 128)),
        (encoded(Image.fromarray(np.full((6, 8), np.inf, np.float32)), "TIFF"), (255, 255, 255)),
        (encoded(Image.fromarray(np.full((6, 8), np.nan, np.float32)), "TIFF"), (0, 0, 0)),
        (encoded(PICTURE.convert("CMYK"), "TIFF"), (200, 30, 30)),
        (encoded(PICTURE, icc_profile=b"no profile"), (200, 30, 30)),
    ],
    ids=[
        *("cmyk", "palette", "clear", "half clear", "16 bit", "1 bit", "webp", "animated", "tiff", "bmp"),
        *("animated png", "animated webp", "stereo", "clear colour", "16 bit big-endian", "float", "infinite", "nan"),
        *("cmyk tiff", "odd profile"),
    ],
)
def test_every_kind_of_image_becomes_rgb(data: bytes, color: tuple[int, ...]) -> None:
    image = decode_image(data)
    assert (image.mode, image.size) == ("RGB", (8, 6))
    assert np.abs(np.asarray(image).astype(int) - color).max() <= 6


def test_a_turned_photo_is_set_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(PICTURE, "JPEG", exif=exif)).size == (6, 8)


@pytest.mark.parametrize("data", [b"", b"junk" * 50, JPEG[:-200], PNG[:48], b"<svg/>"], ids=range(5))
def test_a_broken_image_is_an_error_in_one_line(data: bytes) -> None:
    with pytest.raises(ImageError, match="cannot decode the image: .+") as error:
        decode_image(data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
    ],
    ids=["jpeg", "progressive", "png", "webp", "lossless webp", "gif", "bmp", "tiff", "lzw tiff", "jpeg tiff"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own about a cut TIFF
def test_half_a_picture_is_no_picture(kind: str, options: dict[str, object], share: float) -> None:
    whole = encoded(NOISE, kind, **options)
    assert decode_image(whole).size == NOISE.size
    reasons = set()
    for _ in range(2):
        with pytest.raises(ImageError, match="cannot decode the image: .+") as error:
            decode_image(whole[: int(share * len(whole))])
        reasons.add(str(error.value))
    assert len(reasons) == 1, "the same row every time"


@pytest.mark.parametrize("kind", ["EPS", "PDF", "PPM", "ICO"])
def test_kinds_that_run_programs_or_are_unusual_are_not_opened(kind: str) -> None:
    with pytest.raises(ImageError, match="not one of JPEG, PNG, WEBP, GIF, BMP, TIFF"):
        decode_image(encoded(NOISE, kind))


@pytest.mark.parametrize(("size", "fits"), [((1, 1), True), ((200, 1), True), ((201, 1), False), ((1, 30_000), False)])
def test_a_sliver_is_refused_before_it_is_scaled_up(size: tuple[int, int], fits: bool) -> None:
    data = encoded(Image.new("RGB", size))
    if fits:
        assert decode_image(data).size == size
    else:
        with pytest.raises(ImageError, match=f"{size[0]}x{size[1]} pixels; expected an aspect ratio of at most 200:1"):
            decode_image(data)


def test_a_decompression_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pez.images.MAX_PIXELS", 40)
    with pytest.raises(ValueError, match="8x6 pixels; expected at most 40"):
        decode_image(io.BytesIO(PNG).getvalue())
