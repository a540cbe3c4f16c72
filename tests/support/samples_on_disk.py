"""Encoded images and tars, as tests make them."""

import io
from collections.abc import Callable

from PIL import Image

MakeTar = Callable[..., str]
"""make_tar(name, [(member, bytes), ...]) -> path, see conftest.py"""


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
