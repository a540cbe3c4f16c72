"""FluentPrompt without its fluency term: projected Langevin dynamics over the vocabulary.

P <- Proj(P - rate x gradient at P + sqrt(2 x rate x beta_i) z), with z ~ N(0, 1) in embedding units. beta falls geometrically
from 1 to 1e-4. The energy of the paper also has the fluency under a language model; none exists
over CLIP's vocabulary, so for images it is AutoPrompt-SGD with annealed noise, as in the comparison of the PEZ paper.

Source: Shi et al. 2022, arXiv:2212.10539, section 3.
"""

import torch

from pez.methods.autoprompt import AutoPrompt
from pez.methods.pez import Look
from pez.seeds import generator_for

LAST = 1e-4  # beta after the last step


class FluentPrompt(AutoPrompt):
    """AutoPrompt-SGD with annealed noise; each lane draws its own."""

    generators: dict[int, torch.Generator]

    def start(self, lane: int) -> None:
        super().start(lane)
        self.generators = {i: made for i, made in getattr(self, "generators", {}).items() if i in self.started}
        started = self.started[lane]
        self.generators[lane] = generator_for(self.settings.seed, f"noise|{started.task.key}", started.restart)

    def move(self, rows: slice, look: Look) -> None:
        super().move(rows, look)
        # beta_i = r^(i - 1) with r = exp(ln(LAST) / steps); count is i.
        done = (self.count[rows] - 1) / self.settings.gradient_steps
        scale = (2 * self.settings.rate * LAST**done).sqrt()  # (rows, 1, 1)
        noise = torch.zeros(self.soft[rows].shape)
        for lane in self.started:
            noise[lane] = torch.randn(noise.shape[1:], generator=self.generators[lane])
        self.soft[rows] += scale * noise.to(self.soft)
