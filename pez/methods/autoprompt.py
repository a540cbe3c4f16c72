"""AutoPrompt-SGD, as the PEZ paper names its baseline: projected gradient descent over the vocabulary.

The state is always a prompt of tokens. A step is P <- Proj(P - rate x gradient at P), plain gradient descent, so whatever does
not reach another token is lost. The best prompt visited is the result. (AutoPrompt itself, arXiv:2010.15980, ranks swaps by the
gradient and scores them; see `swaps.py`.)

Source: Wen et al. 2023, arXiv:2302.03668, section 4.1. No learning rate is published for images; see EXPERIMENTS.md.
"""

from pez.methods.pez import Look, Walk


class AutoPrompt(Walk):
    """Projected gradient descent: a walk without a continuous state."""

    def move(self, rows: slice, look: Look) -> None:
        # The projection is the next step's.
        self.soft[rows] = self.vocabulary.embed(look.ids) - self.settings.rate * look.gradient
