"""Algorithm 1 of PEZ over independent lanes.

One lane is one prompt being learned. In each step, for each lane with a soft prompt P:

1. Project: P' = the nearest vocabulary rows of P, by cosine.
2. Score P' against the lane's target; keep its token ids if they are the best so far.
3. g = gradient of the loss (minus the score) at P'.
4. Update P, not P', with g by AdamW.

A finished lane returns its best ids and takes the next task; shapes never change. Every lane has its own step count, moments
and start. Losses are summed, not averaged, and idle lanes are computed as padding. So a result depends on its task alone.

Source: Wen et al. 2023, arXiv:2302.03668. The authors' code averages the loss over prompts learned together, which shrinks
gradients towards Adam's epsilon; with one prompt the steps are the same.
"""

import dataclasses

import torch
from torch import Tensor

from pez.methods.phase import OnStep, half_of, round_up_to_16
from pez.methods.seen import SeenPrompts
from pez.objectives.objective import Objective
from pez.settings import PezSettings
from pez.tasks import Learned, Step
from pez.vocabulary import Vocabulary

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # AdamW's defaults, as in the authors' code


@dataclasses.dataclass(frozen=True)
class Look:
    """What a step finds at the soft prompts of the computed lanes."""

    ids: Tensor
    """(lanes, tokens) int64, the prompts that were scored"""
    score: Tensor
    """(lanes,) float"""
    gradient: Tensor
    """(lanes, tokens, width) float, of the loss at what was scored; empty if the method needs none"""


class Walk:
    """A fixed number of lanes; the module docstring describes the algorithm. The other walks are variants of it.

    Args:
        objective: scores soft prompts.
        vocabulary: the tokens that prompts are made of.
        lanes: prompts learned side by side.
    """

    def __init__(self, objective: Objective, vocabulary: Vocabulary, settings: PezSettings, lanes: int) -> None:
        self.objective, self.vocabulary, self.settings, self.lanes = objective, vocabulary, settings, lanes
        like = vocabulary.embedding
        first = vocabulary.ids[:1].expand(lanes, settings.tokens)
        self.soft = vocabulary.start(first).clone()  # (lanes, tokens, width)
        self.mean = torch.zeros_like(self.soft)  # AdamW's first moment
        self.square = torch.zeros_like(self.soft)  # AdamW's second moment
        self.count = torch.zeros(lanes, 1, 1, dtype=like.dtype, device=like.device)  # steps since the lane's start
        self.best_ids = first.clone()  # (lanes, tokens)
        self.best_score = torch.full((lanes,), -torch.inf, dtype=like.dtype, device=like.device)
        self.seen = SeenPrompts(lanes, settings, like.device) if settings.candidates_kept > 1 else None
        self.target: Tensor | None = None  # (lanes, ...), shaped by the first task
        self.started: dict[int, Learned] = {}
        """what the busy lanes started from, by lane"""
        self.taken = [0] * lanes
        """steps taken for each lane's task; 0 if the lane is idle"""

    @property
    def prompts(self) -> list[Learned]:
        """Those in progress, in lane order."""
        return [started for _, started in sorted(self.started.items())]

    @property
    def free(self) -> int:
        """Idle lanes."""
        return self.lanes - len(self.started)

    @property
    def steps(self) -> int:
        """Steps taken so far for the prompts in progress."""
        return sum(self.taken)

    def admit(self, prompt: Learned) -> None:
        """Give a prompt the first idle lane."""
        lane, task = next(lane for lane in range(self.lanes) if lane not in self.started), prompt.task
        if self.target is None:
            self.target = torch.zeros(self.lanes, *task.target.shape, dtype=task.target.dtype).to(self.soft.device)
        self.started[lane], self.taken[lane] = prompt, 0
        self.target[lane] = task.target
        self.best_score[lane] = -torch.inf
        if self.seen is not None:
            self.seen.clear(lane)
        self.start(lane)

    def clear(self) -> None:
        """Make all lanes idle."""
        self.started = {}
        self.taken = [0] * self.lanes

    def halved(self) -> "tuple[Walk, str] | None":
        """An empty walk of half the lanes."""
        if not (lanes := half_of(self.lanes)):
            return None
        smaller = type(self)(self.objective, self.vocabulary, self.settings, lanes)
        return smaller, f"out of memory with {self.lanes} lanes; continuing with {lanes}"

    def step(self, more: bool = False, on_step: OnStep | None = None) -> list[Learned]:
        """Do one step in every busy lane, and return the prompts that have taken all their steps, in lane order."""
        if not self.started:
            return []
        rows = slice(self._rows())
        best_ids, best_score = self.best_ids[rows], self.best_score[rows]
        look = self.look(rows)
        with torch.no_grad():
            score = look.score.to(best_score.dtype)
            better = score > best_score
            best_score.copy_(torch.where(better, score, best_score))
            best_ids.copy_(torch.where(better.unsqueeze(-1), look.ids, best_ids))
            self.keep(rows, better)
            if self.seen is not None:
                self.seen.add(rows, look.ids.unsqueeze(1), score.unsqueeze(1))
            if on_step is not None:
                lanes = sorted(self.started)
                tasks = [self.started[lane].task for lane in lanes]
                on_step(Step(tasks, look.ids[lanes], score[lanes], best_ids[lanes], best_score[lanes]))
            self.count[rows] += 1
            self.move(rows, look)

        for lane in self.started:
            self.taken[lane] += 1
        return self._take_finished()

    def look(self, rows: slice) -> Look:
        """Score the projections of the soft prompts."""
        assert self.target is not None, "a lane is busy"
        ids = self.project(rows)
        score, gradient = self.objective.score_with_gradient(self.vocabulary.embed(ids), self.target[rows])
        return Look(ids, score, -gradient)

    def project(self, rows: slice) -> Tensor:
        """The nearest allowed tokens of the soft prompts, (rows, tokens) int64."""
        return self.vocabulary.nearest(self.soft[rows])

    def keep(self, rows: slice, better: Tensor) -> None:
        """Keep whatever else belongs to the best prompt of the lanes that have a better one, (rows,) bool."""

    def move(self, rows: slice, look: Look) -> None:
        """Update the soft prompts, after a step that counts."""
        settings = self.settings
        soft, mean, square, count = (state[rows] for state in (self.soft, self.mean, self.square, self.count))
        adamw(soft, look.gradient, mean, square, count, settings.rate, settings.decay)

    def start(self, lane: int) -> None:
        """Put a lane at the prompt that was admitted to it."""
        self.soft[lane] = self.vocabulary.start(self.started[lane].token_ids.to(self.soft.device))
        self.mean[lane] = 0
        self.square[lane] = 0
        self.count[lane] = 0

    def finished(self, lanes: list[int]) -> list[Learned]:
        """The results of lanes that have taken all their steps."""
        best_ids, best_score = self.best_ids[lanes].cpu(), self.best_score[lanes].tolist()
        return [
            dataclasses.replace(
                self.started[lane],
                token_ids=token_ids,
                score=score,
                steps=self.started[lane].steps + self.settings.gradient_steps,
                seen=None if self.seen is None else self.seen.of(lane),
            )
            for lane, token_ids, score in zip(lanes, best_ids, best_score, strict=True)
        ]

    def _take_finished(self) -> list[Learned]:
        steps = self.settings.gradient_steps
        done = sorted(lane for lane in self.started if self.taken[lane] == steps)
        if not done:
            return []
        finished = self.finished(done)
        for lane in done:
            self.taken[lane] = 0
            del self.started[lane]
        return finished

    def _rows(self) -> int:
        """How many of the lanes to compute.

        On an accelerator, all of them: shapes must not change. On a CPU, those up to the last busy one, rounded up to a
        multiple of 16; results are bitwise the same for any multiple of 16 (EXPERIMENTS.md, "Lanes and bits").
        """
        cpu = self.soft.device.type == "cpu"
        return min(self.lanes, round_up_to_16(max(self.started) + 1)) if cpu else self.lanes


class RecordingWalk(Walk):
    """A walk that records which tokens it scores, for swaps among them (`swaps.py`)."""

    def __init__(self, objective: Objective, vocabulary: Vocabulary, settings: PezSettings, lanes: int) -> None:
        super().__init__(objective, vocabulary, settings, lanes)
        size = lanes, len(vocabulary.embedding)
        self.visited = torch.zeros(size, dtype=torch.bool, device=vocabulary.embedding.device)

    def admit(self, prompt: Learned) -> None:
        super().admit(prompt)
        lane = next(lane for lane, started in self.started.items() if started is prompt)
        self.visited[lane] = False

    def look(self, rows: slice) -> Look:
        look = super().look(rows)
        self.visited[rows].scatter_(1, look.ids, True)
        return look

    def finished(self, lanes: list[int]) -> list[Learned]:
        visited = [self.visited[lane].nonzero().squeeze(-1).cpu() for lane in lanes]
        return [
            dataclasses.replace(learned, visited=ids)
            for learned, ids in zip(super().finished(lanes), visited, strict=True)
        ]


def adamw(
    parameter: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, count: Tensor, rate: float, decay: float
) -> None:
    """Do one AdamW update in place, with a separate step count per lane.

    Args:
        parameter, gradient, mean, square: (lanes, tokens, width) float.
        count: (lanes, 1, 1) float, steps taken, including this one.

    The operations and their order are those of torch.optim.AdamW, so a lane matches it bit for bit.
    Source: Loshchilov and Hutter 2019, arXiv:1711.05101, Algorithm 2.
    """
    parameter.mul_(1 - rate * decay)
    mean.lerp_(gradient, 1 - BETA1)
    square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
    correction1, correction2 = 1 - BETA1**count, 1 - BETA2**count
    denominator = (square.sqrt() / correction2.sqrt()).add_(EPSILON)
    parameter.sub_(mean / denominator * (rate / correction1))
