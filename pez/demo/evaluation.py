"""Evaluate a CLIP on the demo scenes: retrieval, and swap tests that reveal failures hidden by retrieval."""

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
        `top1`: share of images whose own caption is the nearest of `count`. For each attribute (shape, color,
        background_color, ...): share of images whose true caption is nearer than every caption with another value of that
        attribute (ten-way for shapes and colors).
    """
    model.eval()
    held_out = scenes.held_out_scenes(count)
    tokenizer = SimpleTokenizer(context_length=model.context_length)
    images = _image_features(model, held_out)
    captions = _text_features(model, tokenizer, [scenes.caption(s) for s in held_out])
    scores = {"top1": _share(images @ captions.T, torch.arange(count))}
    for attribute in attributes:
        scores[attribute] = attribute_accuracy(model, images, held_out, attribute)
    return scores


@torch.inference_mode()
def attribute_accuracy(model: Any, images: Tensor, described: Sequence[Scene], attribute: str) -> float:
    """The share of images for which the model prefers an attribute's true value over all its other values.

    Args:
        images: (n, dim) unit features of the images under the model.
        described: the n scenes that the images show.
    """
    values = scenes.VALUES[attribute]
    tokenizer = SimpleTokenizer(context_length=model.context_length)
    swapped = [scenes.caption(scenes.changed(s, attribute, v), say=attribute) for s in described for v in values]
    features = _text_features(model, tokenizer, swapped).view(len(described), len(values), -1)
    truth = torch.tensor([values.index(getattr(s, attribute)) for s in described])
    return _share(torch.einsum("nd,nvd->nv", images, features), truth)


def _share(similarity: Tensor, truth: Tensor) -> float:
    return (similarity.argmax(-1) == truth).float().mean().item()


def _image_features(model: Any, shown: list[Scene]) -> Tensor:
    pixels = normalise(np.stack([scenes.render(s) for s in shown]))
    return torch.cat([F.normalize(model.encode_image(p), dim=-1) for p in pixels.split(250)])


def _text_features(model: Any, tokenizer: SimpleTokenizer, texts: list[str]) -> Tensor:
    return torch.cat([model.encode_text(ids, normalize=True) for ids in tokenizer(texts).split(500)])


def normalise(images: np.ndarray) -> Tensor:
    """(n, 64, 64, 3) uint8 to (n, 3, 64, 64) float32, as the demo models were trained."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    return (pixels / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)
