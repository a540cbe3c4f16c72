"""Searches for a prompt that makes a language model a better classifier. Restarts are lanes, learned side by side.

The walks, in each step, for each lane with a soft prompt P:

1. Project: P' = the nearest tokens of P, by cosine.
2. g = gradient at P' of the loss on this step's minibatch, cut to a norm.
3. PEZ updates P, not P', so that small updates add up. AutoPrompt-SGD and FluentPrompt update P': what does not reach another
   token is lost. FluentPrompt adds noise that is annealed.

The rounds of swaps, in each round, for each lane:

1. The gradient at the prompt ranks tokens for every position by first-order gain; candidates are drawn among the best.
2. GCG takes the best candidate on the minibatch. The default lets the candidates race on balanced examples: after 8, 16, 32,
   ... examples the worse half is dropped. The winner replaces the prompt if its loss is lower on as many other examples: on
   those that it won on, its loss is too low. Every round has its own examples, so that no set of them is overfitted.

The default starts from the best of many prompts that demonstrate the labels in the form of the template: short examples of the
data with their words, as in few-shot prompting, such as `A fun ride. It was great Horrible. It was terrible`. Without examples
that are short enough, words that are close to a label word in the embedding, or typical of a label in the examples, take their
place: `dull It was terrible funny It was great`. Good starts rank the texts well and balance the label words, which costs a
search by single swaps many rounds: without a prompt, most errors come from a preference of the model for one label word. That
preference grows with the length of the text, so prompts race on examples of all lengths, and not on short ones, which would be
cheaper.

This is not the engine of images (`engine.py`): there, a target is a vector, and the best prompt is the one with the highest
score so far. Here a step's loss is of a minibatch, so it cannot say which prompt is best; that is decided by accuracy on
held-out examples, every few steps. The projection, AdamW, seeds and annealing are shared.

Sources: Wen et al. 2023, arXiv:2302.03668, Algorithm 1 and section 5; FluentPrompt, arXiv:2212.10539; GCG, arXiv:2307.15043;
the preference for label words: Zhao et al. 2021, "Calibrate Before Use", arXiv:2102.09690;
examples as a prompt: Brown et al. 2020, arXiv:2005.14165.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pez.classification import SearchMethod, SearchSettings
from pez.methods.fluentprompt import LAST
from pez.methods.language_starts import Starts
from pez.methods.pez import adamw
from pez.objectives.language_model import Classification, Encoded, Measured
from pez.seeds import generator_for

_TOP = 64  # tokens of each position among which candidates are drawn
_STARTS = 128  # prompts among which the default chooses its starts
_FIRST = 8  # examples after which a race drops the first half
_DECAY = 0.1  # AdamW's weight decay, as for images


@dataclasses.dataclass(frozen=True)
class Candidate:
    """The best prompt of a restart so far."""

    text: str
    heldout: Measured
    step: int


OnStep = Callable[[int, list[Candidate | None]], None]
"""called with the steps taken and the best of each lane"""


class Search:
    """A search for prompts, one a lane.

    Args:
        objective: the loss.
        train, heldout: examples to learn from, and to choose the best prompt by.
        restarts: numbers of the restarts; each has its own start and its own random choices.
    """

    def __init__(
        self,
        objective: Classification,
        train: Encoded,
        heldout: Encoded,
        settings: SearchSettings,
        method: SearchMethod,
        seed: int,
        restarts: Sequence[int],
    ) -> None:
        self.objective, self.train, self.heldout = objective, train, heldout
        self.settings, self.method, self.seed = settings, method, seed
        self.vocabulary = objective.model.vocabulary
        self.lanes = len(restarts)
        self.generators = [generator_for(seed, method, restart) for restart in restarts]
        self.steps = 0
        self.best: list[Candidate | None] = [None] * self.lanes
        self._measured: dict[str, Measured] = {}
        self._first_passes = objective.passes

    def run(self, on_step: OnStep = lambda *_: None) -> list[Candidate]:
        """Search until the steps or the budget end.

        Returns:
            the prompt of each lane that has the highest accuracy on the held-out examples; ties by their loss.
        """
        ids = self.starts()
        state = _State(self.objective.model.embedding[ids])
        total = self.settings.steps_of(self.method)
        self.look(ids)
        while self.steps < total and not self._spent():
            ids = self.advance(ids, state, total)
            self.steps += 1
            if self.steps % self.settings.evaluate_every == 0 or self.steps == total or self._spent():
                self.look(ids)
            on_step(self.steps, self.best)
        return [best for best in self.best if best is not None]

    @property
    def passes(self) -> float:
        """Million tokens that went through the model in each lane, without held-out accuracy; a gradient counts three times."""
        return (self.objective.passes - self._first_passes) / self.lanes / 1e6

    def advance(self, ids: Tensor, state: "_State", total: int) -> Tensor:
        """Do one step.

        Args:
            ids: (lanes, tokens) int64, the prompts of the step before.

        Returns:
            the next prompts.
        """
        if self.method == "random":
            drawn = self.random_ids()
            losses = self.objective.losses(torch.cat([ids, drawn]), self.train, self.rows(self.settings.batch))
            return torch.where((losses[self.lanes :] < losses[: self.lanes])[:, None], drawn, ids)
        if self.method in ("default", "gcg"):
            return self.swap(ids)
        projected = self.objective.model.embedding[ids]
        _, gradient = self.objective.loss_and_gradient(projected, ids, self.train, self.rows(self.settings.batch))
        norms = gradient.flatten(1).norm(dim=-1).view(-1, 1, 1)
        gradient = gradient * (self.settings.clip / norms.clamp_min(1e-6)).clamp_max(1.0)
        if self.method != "pez":
            state.soft.copy_(projected)  # no continuous state is kept
        state.update(gradient, self.settings)
        if self.method == "fluentprompt":
            beta = math.exp(math.log(LAST) * self.steps / total)
            noise = torch.stack([torch.randn(state.soft.shape[1:], generator=g) for g in self.generators])
            state.soft += math.sqrt(2 * self.settings.rate * beta) * noise.to(state.soft)
        return self.vocabulary.nearest(state.soft)

    def swap(self, ids: Tensor) -> Tensor:
        """Do one round of swaps; see the module docstring."""
        rows = self.rows(self.settings.batch)
        embedded = self.objective.model.embedding[ids]
        _, gradient = self.objective.loss_and_gradient(embedded, ids, self.train, rows)
        tried = [
            self.candidates(prompt, slope, g) for prompt, slope, g in zip(ids, gradient, self.generators, strict=True)
        ]
        found, racing = ids.clone(), self.racing(self.steps) if self.method == "default" else []
        for lane, some in enumerate(tried):
            if not len(some):
                continue
            if not racing:
                found[lane] = some[self.objective.losses(some, self.train, rows).argmin()]
                continue
            half = len(racing) // 2
            winner, _ = self.race(some, racing[:half], 1)
            losses = self.objective.losses(torch.cat([winner, ids[lane : lane + 1]]), self.train, racing[half:])
            if losses[0] < losses[1]:
                found[lane] = winner[0]
        return found

    def race(self, ids: Tensor, rows: Sequence[int], keep: int) -> tuple[Tensor, Tensor]:
        """The best prompts by successive halving, best first, and their losses on all of the rows.

        Args:
            ids: (count, tokens) int64.
            rows: indices of examples, the labels in turns.
            keep: how many, at most.

        Source: Karnin et al. 2013, "Almost Optimal Exploration in Multi-Armed Bandits".
        """
        totals, done = torch.zeros(len(ids), device=ids.device), 0
        while done < len(rows):
            part = rows[done : max(_FIRST, 2 * done)]
            totals += self.objective.losses(ids, self.train, part) * len(part)
            done += len(part)
            left = max(keep, -(-len(ids) // 2)) if done < len(rows) else keep
            best = totals.topk(min(left, len(ids)), largest=False).indices
            ids, totals = ids[best], totals[best]
        return ids, totals / done

    def candidates(self, ids: Tensor, gradient: Tensor, generator: torch.Generator) -> Tensor:
        """Prompts that differ in one token, drawn among those of high first-order gain; only texts that encode to them.

        Args:
            ids: (tokens,) int64.
            gradient: (tokens, width) float.

        Returns:
            (count, tokens) int64, at most the settings' candidates.
        """
        places = list[tuple[int, int]]()
        for position, slope in enumerate(gradient):
            words = self.vocabulary.at(position)
            gain = -(words.embed(words.ids) @ slope)
            top = words.ids[gain.topk(min(_TOP, len(gain))).indices]
            places += [(position, token) for token in top.tolist() if token != ids[position]]
        order = torch.randperm(len(places), generator=generator)[: self.settings.candidates].tolist()
        tried = ids.repeat(len(order), 1)
        for row, i in zip(tried, order, strict=True):
            position, token = places[i]
            row[position] = token
        return self.surviving(tried)

    def surviving(self, ids: Tensor) -> Tensor:
        """Those of the (count, tokens) prompts whose text encodes to the same tokens."""
        model = self.objective.model
        read = model.encode([model.text_of(row) for row in ids.tolist()])
        return ids[[i for i, (row, again) in enumerate(zip(ids.tolist(), read, strict=True)) if row == again]]

    def starts(self) -> Tensor:
        """(lanes, tokens) int64 prompts to start from."""
        if self.method == "default":
            return self.scored_starts()
        if self.method == "random" or self.settings.start == "random":
            return self.random_ids()
        words = torch.randperm(len(self.objective.words), generator=generator_for(self.seed, "words", 0)).tolist()
        named = [self.objective.words[i] for i in words]
        starts = Starts(self.objective, self.train, self.settings.tokens, self.generators[0])
        return starts.fitted([starts.repeated(named)] * self.lanes)

    def scored_starts(self) -> Tensor:
        """The best of many short prompts, different ones for the lanes."""
        starts = Starts(self.objective, self.train, self.settings.tokens, self.generators[0])
        texts = [starts.examples() for _ in range(max(_STARTS, 2 * self.lanes))]
        ids = self.surviving(torch.unique(starts.fitted(texts), dim=0))
        if len(ids) < self.lanes:
            return self.random_ids()
        return self.race(ids, self.racing(-1, 2 * self.settings.search_examples), self.lanes)[0]

    def random_ids(self) -> Tensor:
        """(lanes, tokens) int64."""
        return torch.stack([self.vocabulary.random_ids(self.settings.tokens, g) for g in self.generators])

    def rows(self, count: int) -> list[int]:
        """This step's examples, the same for all lanes."""
        return self.objective.draw(self.train, count, self.seed, self.steps)

    def racing(self, step: int, count: int | None = None) -> list[int]:
        """Examples for one race, drawn by seed and step, balanced over the labels; by default as many as the settings say."""
        return self.objective.draw(self.train, count or self.settings.search_examples, self.seed, step, "race")

    def look(self, ids: Tensor) -> None:
        """Measure the texts of prompts on the held-out examples, and keep the best of each lane."""
        for lane, row in enumerate(ids.tolist()):
            text = self.objective.model.text_of(row)
            if text not in self._measured:
                self._measured[text] = self.objective.measure(text, self.heldout)
            found, best = self._measured[text], self.best[lane]
            if best is None or (found.accuracy, -found.loss) > (best.heldout.accuracy, -best.heldout.loss):
                self.best[lane] = Candidate(text, found, self.steps)

    def _spent(self) -> bool:
        return self.settings.budget is not None and self.passes >= self.settings.budget


class _State:
    """The continuous state of the walks and of their optimizer."""

    def __init__(self, soft: Tensor) -> None:
        self.soft = soft.clone()  # (lanes, tokens, width)
        self.mean, self.square = torch.zeros_like(soft), torch.zeros_like(soft)
        self.of_tokens = torch.zeros_like(soft[..., :1])  # Adafactor's mean squares of rows
        self.of_width = torch.zeros_like(soft[:, :1])  # and of columns
        self.count = torch.zeros_like(soft[:, :1, :1])

    def update(self, gradient: Tensor, settings: SearchSettings) -> None:
        """Update the soft prompts by one step of the optimizer."""
        self.count += 1
        if settings.optimizer == "adamw":
            adamw(self.soft, gradient, self.mean, self.square, self.count, settings.rate, _DECAY)
        else:
            adafactor(self.soft, gradient, self.of_tokens, self.of_width, self.count, settings.rate)


def adafactor(parameter: Tensor, gradient: Tensor, rows: Tensor, columns: Tensor, count: Tensor, rate: float) -> None:
    """Do one Adafactor update in place, each lane by itself, with a given rate: no relative step, no scaling.

    Args:
        parameter, gradient: (lanes, tokens, width) float.
        rows, columns: (lanes, tokens, 1) and (lanes, 1, width) float, the mean squares.
        count: (lanes, 1, 1) float, steps taken, including this one.

    Source: Shazeer and Stern 2018, arXiv:1804.04235, Algorithm 4, with decay 1 - t^-0.8 and clipping at 1.
    """
    decay = 1 - count**-0.8
    square = gradient**2 + 1e-30
    rows.copy_(decay * rows + (1 - decay) * square.mean(-1, keepdim=True))
    columns.copy_(decay * columns + (1 - decay) * square.mean(-2, keepdim=True))
    update = gradient * (rows.mean(-2, keepdim=True) / (rows * columns)).sqrt()
    size = update.square().mean((-2, -1), keepdim=True).sqrt()
    parameter.sub_(rate * update / size.clamp_min(1.0))
