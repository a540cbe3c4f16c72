"""Convert what callers pass as images to upright RGB: files, PIL images, arrays, one or many."""

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pez.errors import UserError
from pez.images import decode_image, to_rgb

ImageInput = str | os.PathLike[str] | bytes | io.IOBase | Image.Image | NDArray[Any] | torch.Tensor
"""One image: a path, an open file, its bytes, a PIL image of any mode, or an array or tensor (height, width),
(height, width, 1, 3 or 4) or with channels first; bool, integers from 0 to 255, uint16, or floats from 0 to 1"""
ImageInputs = ImageInput | Iterable[ImageInput]

_CHANNELS = (1, 3, 4)
_EXPECTED = "expected a file, a PIL image or an array (height, width, channels)"


def rgb_images(images: ImageInputs) -> Iterator[Image.Image]:
    """Convert one image or many, lazily, to upright RGB as `pez.images` does.

    Raises:
        UserError: an input is not an image; the message names its index.
    """
    for i, image in enumerate(_each(images)):
        try:
            yield _rgb(image)
        except (ValueError, OSError) as error:
            where = f" ({str(image)!r})" if isinstance(image, str | os.PathLike) else ""
            reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
            raise UserError(f"images[{i}]{where}: {reason}") from error


def _each(images: ImageInputs) -> Iterable[Any]:
    if isinstance(images, str | os.PathLike | bytes | bytearray | io.IOBase | Image.Image):
        return [images]
    if isinstance(images, np.ndarray | torch.Tensor):
        return images if images.ndim == 4 else [images]
    if isinstance(images, Iterable) and not isinstance(images, Mapping):
        return images
    raise UserError(f"images is of type {type(images).__name__}; {_EXPECTED}, or several of these")


def _rgb(image: Any) -> Image.Image:
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        if not str(image):
            raise UserError("an empty path; expected an image file")
        if path.is_dir():
            raise UserError("a folder; expected an image file")
        return decode_image(path.read_bytes())
    if isinstance(image, bytes | bytearray):
        return decode_image(bytes(image))
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, io.IOBase):
        return decode_image(image.read())
    if isinstance(image, torch.Tensor):
        if image.layout != torch.strided or image.is_meta:
            raise UserError(f"a {'meta' if image.is_meta else 'sparse'} tensor; expected a dense tensor with data")
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if isinstance(image, np.ndarray):
        return to_rgb(Image.fromarray(_bytes_of(_channels_last(image))))
    raise UserError(f"type {type(image).__name__}; {_EXPECTED}")


def _channels_last(array: NDArray[Any]) -> NDArray[Any]:
    """(height, width) or (height, width, 3 or 4)."""
    shape = array.shape
    if array.ndim not in (2, 3) or not array.size:
        raise UserError(f"an array of shape {shape}; expected (height, width) or (height, width, 1, 3 or 4)")
    if array.ndim == 2:
        return array
    first, last = shape[0] in _CHANNELS, shape[2] in _CHANNELS
    if first == last:
        found = (
            "both the first and the last dimension could be the channels"
            if first
            else "neither the first nor the last dimension is a number of channels"
        )
        raise UserError(
            f"an array of shape {shape}, where {found};"
            " expected (height, width, 1, 3 or 4) or (1, 3 or 4, height, width)"
        )
    array = np.moveaxis(array, 0, 2) if first else array
    return array[..., 0] if array.shape[2] == 1 else array


def _bytes_of(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.uint16:
        return (array / 257.0).round().astype(np.uint8)
    if array.dtype.kind not in "iuf":
        raise UserError(f"an array of {array.dtype}; expected bool, integers or floats")
    highest = 1 if array.dtype.kind == "f" else 255
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= highest):  # also catches NaN
        raise UserError(f"an array of {array.dtype} from {low:.4g} to {high:.4g}; expected 0 to {highest}")
    return (array * 255.0).round().astype(np.uint8) if highest == 1 else array.astype(np.uint8)
