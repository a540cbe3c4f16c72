"""How well a CLIP knows the demo scenes: retrieval, and swap tests that retrieval alone would hide the failure of."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from pez.demo import scenes
from pez.demo.scenes import Scene


@torch.inference_mode()
def evaluate_demo_clip(
    model: Any, count: int = 1000, attributes: Sequence[str] = tuple(scenes.VALUES)
) -> dict[str, float]:
    """Score an open_clip model on held-out scenes.

    Returns:
        `top1`: share of images whose own caption is the nearest of `count`; and for each of the attributes (shape, color,
        background_color, ...) the share of images for which the true caption is nearer than every caption with that
        attribute's word replaced (ten-way for shapes and colours).
    """
    model.eval()
    held_out = scenes.held_out_scenes(count)
    tokenizer = SimpleTokenizer(context_length=model.context_length)
    images = _image_features(model, held_out)
    captions = _text_features(model, tokenizer, [scenes.caption(s) for s in held_out])
    scores = {"top1": _share(images @ captions.T, torch.arange(count))}
    for attribute in attributes:
        scores[attribute] = named(model, images, held_out, attribute)
    return scores


@torch.inference_mode()
def named(model: Any, images: Tensor, described: Sequence[Scene], attribute: str) -> float:
    """The share of pictures in which a model sees an attribute's true value rather than any other of its values.

    Args:
        images: (n, dim) the model's unit features of the pictures.
        described: what the pictures show, n scenes.
    """
    values = scenes.VALUES[attribute]
    tokenizer = SimpleTokenizer(context_length=model.context_length)
    swapped = [scenes.caption(scenes.changed(s, attribute, v), say=attribute) for s in described for v in values]
    features = _text_features(model, tokenizer, swapped).view(len(described), len(values), -1)
    truth = torch.tensor([values.index(getattr(s, attribute)) for s in described])
    return _share(torch.einsum("nd,nvd->nv", images, features), truth)


def _share(similarity: Tensor, truth: Tensor) -> float:
    return (similarity.argmax(-1) == truth).float().mean().item()


def _image_features(model: Any, pictured: list[Scene]) -> Tensor:
    pixels = normalise(np.stack([scenes.render(s) for s in pictured]))
    return torch.cat([F.normalize(model.encode_image(p), dim=-1) for p in pixels.split(250)])


def _text_features(model: Any, tokenizer: SimpleTokenizer, texts: list[str]) -> Tensor:
    return torch.cat([model.encode_text(ids, normalize=True) for ids in tokenizer(texts).split(500)])


def normalise(pictures: np.ndarray) -> Tensor:
    """(n, 64, 64, 3) uint8 to (n, 3, 64, 64) float32, as the demo models were trained."""
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    return (images / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)
