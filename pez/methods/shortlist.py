"""The default's walk: PEZ with a search of the whole vocabulary in few of its steps.

The nearest token of a soft token is searched among all tokens in one of `project_every` steps of a lane, and in the others
among the 64 that were nearest then. A soft token is long after a few steps, so its direction turns slowly, and the nearest
token is almost always one of those. Figures are in EXPERIMENTS.md, "A shortlist of near tokens".
"""

import torch
from torch import Tensor

from pez.methods.pez import RecordingWalk
from pez.methods.phase import round_up_to_16
from pez.objectives.objective import Objective
from pez.settings import PezSettings
from pez.vocabulary import Vocabulary

SHORTLIST = 64
_LEAST_VOCABULARY = 4 * SHORTLIST


class ShortlistWalk(RecordingWalk):
    """A walk that projects onto a shortlist of near tokens in most steps."""

    def __init__(self, objective: Objective, vocabulary: Vocabulary, settings: PezSettings, lanes: int) -> None:
        super().__init__(objective, vocabulary, settings, lanes)
        self.near: Tensor | None = None  # (lanes, tokens, SHORTLIST), places of near tokens
        if uses_shortlist(settings, len(vocabulary.ids)):
            size = lanes, settings.tokens, SHORTLIST
            self.near = torch.zeros(size, dtype=torch.int64, device=vocabulary.embedding.device)

    def project(self, rows: slice) -> Tensor:
        if self.near is None:
            return super().project(rows)
        settings = self.settings
        due = [lane for lane in self.started if self.taken[lane] % settings.project_every == 0]
        if due:
            # Results are bitwise the same for any multiple of 16 lanes (EXPERIMENTS.md, "Lanes and bits").
            lanes = due + due[-1:] * (round_up_to_16(len(due)) - len(due))
            self.near[due] = self.vocabulary.nearest_few(self.soft[lanes], SHORTLIST)[: len(due)]
        return self.vocabulary.nearest_among(self.soft[rows], self.near[rows])


def uses_shortlist(settings: PezSettings, allowed: int) -> bool:
    """Whether the default's walk keeps a shortlist; a small vocabulary is searched in each step."""
    return settings.project_every > 1 and allowed >= _LEAST_VOCABULARY
