"""A soft prompt: the walk without its projection.

AdamW on P with the gradient at P itself. Its score is an upper bound that no text reaches: the best soft prompt visited is
projected at the end, and the projection is what remains of it.

Source: the soft prompt of Wen et al. 2023, arXiv:2302.03668, section 4.1.
"""

import dataclasses

import torch
from torch import Tensor

from pez.methods.pez import Look, Walk
from pez.methods.phase import OnStep
from pez.tasks import Learned, Step


class SoftPrompt(Walk):
    """Gradient steps on the soft prompt. The scores of its steps are those of the soft prompt, the ids its projection."""

    best_soft: Tensor | None = None
    """(lanes, tokens, width) float, where the best scores were"""

    def step(self, more: bool = False, on_step: OnStep | None = None) -> list[Learned]:
        """See Walk. Only who looks on pays for the projections of each step."""
        if on_step is None:
            return super().step(more)

        def show(step: Step) -> None:
            rows, lanes = slice(self._rows()), sorted(self.started)
            ids, best_ids = self.vocabulary.nearest(self.soft[rows]), self._projected(rows)[0].to(step.best_ids.device)
            on_step(dataclasses.replace(step, token_ids=ids[lanes], best_ids=best_ids[lanes]))

        return super().step(more, show)

    def look(self, rows: slice) -> Look:
        assert self.target is not None, "a lane is busy"
        soft = self.soft[rows].detach().requires_grad_()
        score = self.objective.score(soft, self.target[rows])
        (gradient,) = torch.autograd.grad(-score.sum(), soft)
        return Look(self.best_ids[rows], score.detach(), gradient)

    def keep(self, rows: slice, better: Tensor) -> None:
        if self.best_soft is None:
            self.best_soft = self.soft.clone()
        self.best_soft[rows] = torch.where(better.view(-1, 1, 1), self.soft[rows], self.best_soft[rows])

    def finished(self, lanes: list[int]) -> list[Learned]:
        ids, scores = self._projected(slice(self._rows()))
        return [
            dataclasses.replace(learned, token_ids=ids[lane], score=scores[lane], soft_score=learned.score)
            for lane, learned in zip(lanes, super().finished(lanes), strict=True)
        ]

    @torch.no_grad()
    def _projected(self, rows: slice) -> tuple[Tensor, list[float]]:
        """(rows, tokens) int64 projections of the best soft prompts, on the CPU, and their scores."""
        assert self.best_soft is not None, "a step was taken"
        assert self.target is not None, "a lane is busy"
        ids = self.vocabulary.nearest(self.best_soft[rows])
        scores: list[float] = self.objective.score(self.vocabulary.embed(ids), self.target[rows]).tolist()
        return ids.cpu(), scores
