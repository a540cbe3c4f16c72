"""What a prompt is learned for: the interface that the engine sees."""

from typing import Protocol

from torch import Tensor


class Objective(Protocol):
    """Scores a batch of soft prompts; higher is better."""

    def score(self, soft: Tensor, batch: Tensor) -> Tensor:
        """Score each prompt against the target of its own lane.

        Args:
            soft: (lanes, tokens, width) float, differentiable.
            batch: (lanes, ...) the target of each lane.

        Returns:
            (lanes,) float; lane i depends on soft[i] and batch[i] alone.
        """
        ...
