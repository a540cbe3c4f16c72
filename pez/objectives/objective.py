"""What a prompt is learned for: the interface that the optimiser sees, and targets made of features."""

import dataclasses
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class Objective(Protocol):
    """Scores a batch of soft prompts; higher is better."""

    def score(self, soft: Tensor, target: Tensor) -> Tensor:
        """Score each prompt against the target of its own lane.

        Args:
            soft: (lanes, tokens, width) float, differentiable.
            target: (lanes, ...) one target a lane.

        Returns:
            (lanes,) float; lane i depends on soft[i] and target[i] alone.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Target:
    """Features that a prompt shall be near to, or away from.

    Args:
        features: (n, dim) float, of images or texts; any length.
        weights: (n,) float; 1 = near, negative = away from. None = all 1.

    The score of a prompt is the mean over n of weight x cosine. As cosine is linear in a unit feature, all of them together
    are one direction.
    """

    features: Tensor
    weights: Tensor | None = None

    def direction(self) -> Tensor:
        """(dim,) float: its product with a prompt's unit feature is the score."""
        units = F.normalize(self.features, dim=-1)
        if self.weights is not None:
            units = units * self.weights.to(units).unsqueeze(-1)
        return units.mean(0)
