"""HEIC and JPEG XL are read with their plugins, as upright and as bounded as others; without one, a line says so."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from pez import images
from pez.images import ImageError, decode_image
from pez.plugin_images import size_before_opening

TURNED = Image.new("RGB", (64, 48), (200, 30, 30))
TURNED.paste((30, 30, 200), (0, 0, 32, 48))


def heic(picture: Image.Image, **options: object) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pip install -e '.[heic]'")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(picture).save(buffer, **options)
    return buffer.getvalue()


def jxl(picture: Image.Image, **options: object) -> bytes:
    pytest.importorskip("pillow_jxl", reason="pip install -e '.[jxl]'")
    buffer = io.BytesIO()
    picture.save(buffer, "JXL", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("encode", [heic, jxl])
def test_a_kind_with_a_plugin_becomes_rgb(encode: object) -> None:
    image = decode_image(encode(TURNED))  # type: ignore[operator]
    assert (image.mode, image.size) == ("RGB", (64, 48))
    assert np.abs(np.asarray(image)[24, 16].astype(int) - (30, 30, 200)).max() < 12
    assert np.abs(np.asarray(image)[24, 48].astype(int) - (200, 30, 30)).max() < 12


def test_a_turned_heic_is_set_upright_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(heic(TURNED, exif=exif.tobytes())).size == (48, 64)


def test_transparency_is_over_white() -> None:
    assert decode_image(jxl(Image.new("RGBA", (16, 16), (200, 30, 30, 0)))).getpixel((8, 8)) == (255, 255, 255)


@pytest.mark.parametrize("size", [(64, 48), (256, 256), (300, 200), (1, 1000), (1920, 1080), (9000, 1)])
@pytest.mark.parametrize("container", [False, True])
def test_the_size_of_a_jpeg_xl_is_known_before_it_is_decoded(size: tuple[int, int], container: bool) -> None:
    data = jxl(Image.new("L", size), use_container=container)
    assert size_before_opening("JPEG XL", data) == size


def test_a_jpeg_xl_of_too_many_pixels_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jxl(TURNED)
    monkeypatch.setattr(images, "MAX_PIXELS", 3000)
    monkeypatch.setattr(images, "open_with_plugin", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="64x48 pixels; expected at most 3000"):
        decode_image(data)


@pytest.mark.parametrize("encode", [heic, jxl])
def test_a_broken_one_is_one_line(encode: object) -> None:
    data = encode(TURNED)  # type: ignore[operator]
    for broken in (data[: len(data) // 2], data[:40], data[:40] + bytes(200)):
        with pytest.raises(ImageError, match="cannot decode the image: ") as error:
            decode_image(broken)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("module", "head", "words"),
    [
        ("pillow_heif", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", r"HEIC is read with pillow-heif, .*\.\[heic\]"),
        ("pillow_jxl.JpegXLImagePlugin", b"\xff\x0a\1\2\3\4", r"JPEG XL is read with pillow-jxl-plugin, .*\.\[jxl\]"),
    ],
)
def test_without_the_plugin_a_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, module: str, head: bytes, words: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImageError, match=words):
        decode_image(head + bytes(100))
