"""The interface of an objective, as the engine sees it."""

from typing import Protocol

from torch import Tensor


class Objective(Protocol):
    """Scores a batch of soft prompts; higher is better."""

    def score(self, soft: Tensor, batch: Tensor) -> Tensor:
        """Score each prompt against the target of its own lane.

        Args:
            soft: (lanes, tokens, width) float, differentiable.
            batch: (lanes, ...) one target per lane.

        Returns:
            (lanes,) float; score i depends on soft[i] and batch[i] only.
        """
        ...
