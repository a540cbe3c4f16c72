"""Cosine of a prompt's text feature with features of images or texts under a CLIP."""

import dataclasses

import torch.nn.functional as F
from torch import Tensor

from pez.models.text_encoder import TextEncoder


@dataclasses.dataclass(frozen=True)
class Target:
    """Features that attract or repel a prompt.

    Args:
        features: (n, dim) float, of images or texts; need not be unit vectors.
        weights: (n,) float; 1 = attract, negative = repel. None = all 1.

    The score of a prompt is the mean over n of weight x cosine. Since the cosine is linear in a unit feature, the features
    combine to one direction.
    """

    features: Tensor
    weights: Tensor | None = None

    def direction(self) -> Tensor:
        """(dim,) float; its dot product with a prompt's unit feature is the score."""
        units = F.normalize(self.features, dim=-1)
        if self.weights is not None:
            units = units * self.weights.to(units).unsqueeze(-1)
        return units.mean(0)


class ClipObjective:
    """Cosine of a soft prompt's text feature with the lane's target, a direction in feature space."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder

    def score(self, soft: Tensor, batch: Tensor) -> Tensor:
        """(lanes, tokens, width) soft prompts and (lanes, dim) directions to (lanes,) scores."""
        features = F.normalize(self.encoder(soft).to(batch.dtype), dim=-1)
        return (features * batch).sum(-1)
