"""The interface of an objective, as the engine sees it."""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Objective(Protocol):
    """Scores a batch of soft prompts; higher is better.

    A subclass has `score`. `score_and_keep` and `score_changed` save work for prompts that begin alike; as they are here,
    they save none. `score_tokens` is for objectives under which a token alone means something.
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

    def score_with_gradient(self, soft: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """The same scores, (lanes,), and the gradient of their sum at the soft prompts, (lanes, tokens, width)."""
        leaf = soft.detach().requires_grad_()
        score = self.score(leaf, batch)
        (gradient,) = torch.autograd.grad(score.sum(), leaf)
        return score.detach(), gradient

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

    def score_for_all(self, soft: Tensor, batch: Tensor) -> Tensor:
        """Score the same prompts against every target.

        Args:
            soft: (count, tokens, width) float; the number of tokens may be smaller than that of other prompts.
            batch: (lanes, ...) targets.

        Returns:
            (lanes, count) float.
        """
        lanes, count = len(batch), len(soft)
        return self.score(soft.repeat(lanes, 1, 1), batch.repeat_interleave(count, 0)).view(lanes, count)

    def score_tokens(self, ids: Tensor, batch: Tensor) -> Tensor:
        """Score single tokens, each as a prompt of its own.

        Args:
            ids: (lanes, count) int64.
            batch: (lanes, ...) the target of each lane.

        Returns:
            (lanes, count) float; as it is here, zeros.
        """
        return torch.zeros(ids.shape, device=ids.device)


class _Whole(NamedTuple):
    """Prompts as they are, of which nothing is saved."""

    soft: Tensor

    def rows(self, part: slice) -> "_Whole":
        return _Whole(self.soft[part])
