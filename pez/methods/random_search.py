"""Random search: the best of many prompts of random tokens. What a method must beat to be worth its gradients."""

import torch

from pez.methods.pez import Look, Walk
from pez.seeds import generator_for


class RandomSearch(Walk):
    """A walk that goes nowhere: each step scores another random prompt, the first of them the start of all methods."""

    generators: dict[int, torch.Generator]

    def start(self, lane: int) -> None:
        super().start(lane)
        self.generators = {i: made for i, made in getattr(self, "generators", {}).items() if i in self.started}
        started = self.started[lane]
        self.generators[lane] = generator_for(self.settings.seed, f"random|{started.task.key}", started.restart)
        self.best_ids[lane] = self.started[lane].token_ids.to(self.best_ids.device)

    def look(self, rows: slice) -> Look:
        assert self.target is not None, "a lane is busy"
        places = torch.zeros(self.best_ids[rows].shape, dtype=torch.long)
        for lane, generator in self.generators.items():
            if lane in self.started and self.taken[lane]:
                places[lane] = torch.randint(len(self.vocabulary.ids), places.shape[1:], generator=generator)
        first = [lane for lane in self.started if not self.taken[lane]]
        ids = self.vocabulary.ids[places.to(self.vocabulary.ids.device)]
        ids[first] = self.best_ids[first]
        with torch.no_grad():
            score = self.objective.score(self.vocabulary.embed(ids), self.target[rows])
        return Look(ids, score, score.new_empty(0))

    def move(self, rows: slice, look: Look) -> None:
        """The next prompt does not depend on this one."""
