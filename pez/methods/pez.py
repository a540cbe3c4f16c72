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

from collections.abc import Callable

import torch
from torch import Tensor

from pez.objectives.objective import Objective
from pez.seeds import generator_for
from pez.settings import PezSettings
from pez.tasks import Learned, Step, Task
from pez.vocabulary import Vocabulary

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # AdamW's defaults, as in the authors' code


class Walk:
    """A fixed number of lanes; the module docstring describes the algorithm.

    Args:
        objective: scores soft prompts.
        vocabulary: the tokens that prompts are made of.
        lanes: prompts learned side by side.
    """

    def __init__(self, objective: Objective, vocabulary: Vocabulary, settings: PezSettings, lanes: int) -> None:
        self.objective, self.vocabulary, self.settings = objective, vocabulary, settings
        like = vocabulary.embedding
        first = vocabulary.ids[:1].expand(lanes, settings.tokens)
        self.soft = vocabulary.start(first).clone()  # (lanes, tokens, width)
        self.mean = torch.zeros_like(self.soft)  # AdamW's first moment
        self.square = torch.zeros_like(self.soft)  # AdamW's second moment
        self.count = torch.zeros(lanes, 1, 1, dtype=like.dtype, device=like.device)  # steps since the lane's start
        self.best_ids = first.clone()  # (lanes, tokens)
        self.best_score = torch.full((lanes,), -torch.inf, dtype=like.dtype, device=like.device)
        self.target: Tensor | None = None  # (lanes, ...), shaped by the first task
        self.lanes = lanes
        self.tasks: dict[int, Task] = {}
        """tasks of the busy lanes, by lane"""
        self.taken = [0] * lanes
        """steps taken for each lane's task, over all restarts; 0 if the lane is idle"""

    @property
    def free(self) -> int:
        """Idle lanes."""
        return self.lanes - len(self.tasks)

    def admit(self, task: Task) -> None:
        """Give a task the first idle lane."""
        lane = next(lane for lane in range(self.lanes) if lane not in self.tasks)
        if self.target is None:
            self.target = torch.zeros(self.lanes, *task.target.shape, dtype=task.target.dtype).to(self.soft.device)
        self.tasks[lane], self.taken[lane] = task, 0
        self.target[lane] = task.target
        self.best_score[lane] = -torch.inf
        self._start(lane, task, restart=0)

    def clear(self) -> None:
        """Make all lanes idle."""
        self.tasks = {}
        self.taken = [0] * self.lanes

    def step(self, on_step: Callable[[Step], None] | None = None) -> None:
        """Do one step of Algorithm 1 in every lane; at least one lane must be busy."""
        assert self.target is not None, "a lane is busy"
        settings = self.settings
        rows = slice(self._rows())
        soft, count, best_ids, best_score = (
            state[rows] for state in (self.soft, self.count, self.best_ids, self.best_score)
        )
        ids = self.vocabulary.nearest(soft)
        projected = self.vocabulary.embed(ids).requires_grad_()
        score = self.objective.score(projected, self.target[rows])  # (rows,)
        (gradient,) = torch.autograd.grad(-score.sum(), projected)

        with torch.no_grad():
            score = score.detach().to(best_score.dtype)
            better = score > best_score
            best_score.copy_(torch.where(better, score, best_score))
            best_ids.copy_(torch.where(better.unsqueeze(-1), ids, best_ids))
            if on_step is not None:
                lanes = sorted(self.tasks)
                tasks = [self.tasks[lane] for lane in lanes]
                on_step(Step(tasks, ids[lanes], score[lanes], best_ids[lanes], best_score[lanes]))
            count += 1
            adamw(soft, gradient, self.mean[rows], self.square[rows], count, settings.learning_rate, settings.decay)

        for lane, task in self.tasks.items():
            self.taken[lane] += 1
            restart, ended = divmod(self.taken[lane], settings.steps)
            if ended == 0 and restart < settings.restarts:
                self._start(lane, task, restart)

    def take_finished(self) -> list[Learned]:
        """Remove and return the tasks that have taken all their steps, in lane order."""
        total = self.settings.walk_steps
        done = sorted(lane for lane in self.tasks if self.taken[lane] == total)
        if not done:
            return []
        best_ids, best_score = self.best_ids[done].cpu(), self.best_score[done].tolist()
        for lane in done:
            self.taken[lane] = 0
        return [
            Learned(self.tasks.pop(lane), token_ids, score, total)
            for lane, token_ids, score in zip(done, best_ids, best_score, strict=True)
        ]

    def _rows(self) -> int:
        """How many of the lanes to compute.

        On an accelerator, all of them: shapes must not change. On a CPU, those up to the last busy one, rounded up to a
        multiple of 16; results are bitwise the same for any multiple of 16 (EXPERIMENTS.md, "Lanes and bits").
        """
        return self.lanes if self.soft.device.type != "cpu" else min(self.lanes, round_up_to_16(max(self.tasks) + 1))

    def _start(self, lane: int, task: Task, restart: int) -> None:
        if restart == 0 and task.initial_ids is not None:
            ids = task.initial_ids.to(self.soft.device)
        else:
            ids = self.vocabulary.random_ids(self.settings.tokens, generator_for(self.settings.seed, task.key, restart))
        self.soft[lane] = self.vocabulary.start(ids)
        self.mean[lane] = 0
        self.square[lane] = 0
        self.count[lane] = 0


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


def round_up_to_16(count: int) -> int:
    """The smallest multiple of 16 that is not below `count`."""
    return -(-count // 16) * 16
