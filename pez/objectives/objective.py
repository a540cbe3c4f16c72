"""The interface of an objective, as the engine sees it."""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Objective(Protocol):
    """Scores a batch of soft prompts; higher is better.

    A subclass has `score`. The other two save work for prompts that begin alike; as they are here, they save none.
    """

    def score(self, soft: Tensor, batch: Tensor) -> Tensor:
        """Score each prompt against the target of its own lane.

        Args:
            soft: (lanes, tokens, width) float, differentiable.
            batch: (lanes, ...) one target per lane.

        Returns:
            (lanes,) float; score i depends on soft[i] and batch[i] only.
        """
        ...

    def score_and_keep(self, soft: Tensor, batch: Tensor) -> tuple[Tensor, Any]:
        """The same scores, and what `score_changed` needs of these prompts; it has `rows(slice)`, for some of them."""
        return self.score(soft, batch), _Whole(soft.detach())

    def score_changed(self, kept: Any, start: int, soft: Tensor, batch: Tensor) -> Tensor:
        """Score prompts that differ from kept ones only from a position on; no gradient flows to the kept ones.

        Args:
            kept: of the prompts of all lanes.
            start: the first position that differs.
            soft: (lanes, count, tokens - start, width) float, the tokens from there on of `count` prompts for each lane.
            batch: (lanes, ...) the target of each lane.

        Returns:
            (lanes, count) float.
        """
        lanes, count = soft.shape[:2]
        whole = torch.cat([kept.soft[:, None, :start].expand(-1, count, -1, -1), soft], 2)
        return self.score(whole.flatten(0, 1), batch.repeat_interleave(count, 0)).view(lanes, count)


class _Whole(NamedTuple):
    """Prompts as they are, of which nothing is saved."""

    soft: Tensor

    def rows(self, part: slice) -> "_Whole":
        return _Whole(self.soft[part])
