"""Algorithm 1 of PEZ over independent lanes.

One lane is one prompt being learned. For each lane, with a soft prompt P:

1. Project: P' = the nearest vocabulary rows of P, by cosine.
2. Score P' against the lane's target, and keep its token ids if they are the best so far.
3. g = gradient of the loss (minus the score) at P'.
4. Update P, not P', with g by AdamW.

A lane that has had its steps gives its best ids back and takes the next task, at once and without a change of shape. Every
lane has its own step count, moments and start, the losses are summed and not averaged, and idle lanes are computed along:
so a result depends on the lane's task alone.

Unless the settings say exact, rounds of token swaps follow (`swaps.py`): the walk never settles, and the best prompt it
visits is improved for a fraction of the walk's cost.

Source: Wen et al. 2023, arXiv:2302.03668. The authors' code averages the loss over prompts learned together, which shrinks
gradients towards Adam's epsilon; with one prompt the steps are the same.
"""

import dataclasses
import hashlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pez.methods.swaps import swap_rounds
from pez.objectives.objective import Objective
from pez.settings import PezSettings
from pez.vocabulary import Vocabulary

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # AdamW's defaults, as in the authors' code


@dataclasses.dataclass(frozen=True)
class Task:
    """One prompt to learn."""

    key: str
    """with the settings' seed, fixes the random start"""
    target: Tensor
    """what the objective scores against, one lane's worth: (dim,) for a direction"""
    initial_ids: Tensor | None = None
    """(tokens,) int64 first token ids of the first start; None = random"""
    handle: Any = None
    """whatever the caller wants to find again on the result"""


@dataclasses.dataclass(frozen=True)
class Learned:
    """The best prompt found for a task."""

    task: Task
    token_ids: Tensor
    """(tokens,) int64, on the CPU"""
    score: float
    steps: int
    """gradient steps taken, over all restarts"""


@dataclasses.dataclass(frozen=True)
class Step:
    """What all lanes did in one gradient step, before the update, or in one round of swaps."""

    tasks: list[Task | None]
    """the task of each lane, None = idle"""
    token_ids: Tensor
    """(lanes, tokens) int64"""
    score: Tensor
    """(lanes,) float"""
    best_ids: Tensor
    """(lanes, tokens) int64, best of each lane so far, this step included"""
    best_score: Tensor
    """(lanes,) float; the lanes that are computed, idle ones after the last busy one may be missing"""


def learn(
    objective: Objective,
    vocabulary: Vocabulary,
    tasks: Iterable[Task | None],
    settings: PezSettings,
    lanes: int,
    on_step: Callable[[Step], None] | None = None,
) -> Iterator[list[Learned]]:
    """Learn a prompt for every task, so many lanes at a time: gradient steps, then swaps unless the settings say exact.

    Args:
        objective: scores soft prompts.
        vocabulary: the tokens that prompts are made of; its dtype is that of the soft prompts.
        tasks: drawn from when a lane is free, so it may be endless; None says that none is ready yet, and the lanes that
            are busy go on.
        lanes: prompts learned side by side; halved, with a warning, where memory runs out. With a multiple of 16 a
            result depends bit for bit on its task alone (matrix libraries take other code paths for fewer rows).
        on_step: called after each step's scores are known; reading them makes the host wait for the device.

    Yields:
        one result a task, in lists of those that end in the same step.
    """
    waiting: list[Learned] = []
    for ended in _walk(objective, vocabulary, tasks, settings, lanes, on_step):
        if settings.exact or not settings.swaps:
            if ended:
                yield ended
            continue
        waiting += ended
        while len(waiting) >= lanes or (waiting and not ended):
            yield _swap(objective, vocabulary, waiting[:lanes], settings, lanes, on_step)
            waiting = waiting[lanes:]


def _walk(
    objective: Objective,
    vocabulary: Vocabulary,
    tasks: Iterable[Task | None],
    settings: PezSettings,
    lanes: int,
    on_step: Callable[[Step], None] | None,
) -> Iterator[list[Learned]]:
    """Algorithm 1 for every task; an empty list whenever no lane is busy any more."""
    state = Lanes(objective, vocabulary, settings, lanes)
    queue: Iterator[Task | None] = iter(tasks)
    more = True
    while True:
        while more and state.free:
            try:
                task = next(queue)
            except StopIteration:
                more = False
                break
            if task is None:
                break
            state.admit(task)
        if not state.busy:
            yield []
            if not more:
                return
            continue
        smaller = 0
        try:
            state.step(on_step)
        except torch.OutOfMemoryError:
            smaller = len(state.tasks) // 32 * 16  # half, in whole sixteens
            if not smaller:
                raise
        if smaller:  # not inside the except: the error holds what the failed step has in memory
            warnings.warn(f"out of memory with {len(state.tasks)} lanes; going on with {smaller}", stacklevel=2)
            # Those in work begin again: a task's result does not depend on what was done before.
            again: list[Task | None] = [task for task in state.tasks if task is not None]
            queue = itertools.chain(again, queue)
            more = True
            state = Lanes(objective, vocabulary, settings, smaller)
        elif ended := state.ended():
            yield ended


def _swap(
    objective: Objective,
    vocabulary: Vocabulary,
    walked: list[Learned],
    settings: PezSettings,
    lanes: int,
    on_step: Callable[[Step], None] | None,
) -> list[Learned]:
    """Swap rounds for at most `lanes` prompts; idle lanes repeat the last one."""
    if vocabulary.embedding.device.type == "cpu":
        lanes = min(lanes, sixteens(len(walked)))
    filled = [*walked, *[walked[-1]] * (lanes - len(walked))]
    device = vocabulary.embedding.device
    ids = torch.stack([learned.token_ids for learned in filled]).to(device)
    target = torch.stack([learned.task.target for learned in filled]).to(device)
    tasks = [*(learned.task for learned in walked), *[None] * (lanes - len(walked))]

    def tell(ids: Tensor, score: Tensor) -> None:
        if on_step is not None:
            on_step(Step(tasks, ids, score, ids, score))

    smaller = 0
    try:
        ids, score = swap_rounds(objective, vocabulary, ids, target, settings.swaps, settings.candidates, tell)
    except torch.OutOfMemoryError:
        smaller = lanes // 32 * 16
        if not smaller:
            raise
    if smaller:  # not inside the except: the error holds what the failed rounds have in memory
        warnings.warn(f"out of memory with swaps of {lanes} lanes; going on with {smaller}", stacklevel=2)
        parts = [walked[i : i + smaller] for i in range(0, len(walked), smaller)]
        return [r for part in parts for r in _swap(objective, vocabulary, part, settings, smaller, on_step)]
    found = zip(walked, ids.cpu(), score.tolist(), strict=False)
    return [dataclasses.replace(learned, token_ids=row, score=value) for learned, row, value in found]


class Lanes:
    """A fixed number of prompts being learned side by side; see the module's text."""

    def __init__(self, objective: Objective, vocabulary: Vocabulary, settings: PezSettings, lanes: int) -> None:
        self.objective, self.vocabulary, self.settings = objective, vocabulary, settings
        tokens = settings.tokens
        like = vocabulary.embedding
        first = vocabulary.ids[:1].expand(lanes, tokens)
        self.soft = vocabulary.start(first).clone()  # (lanes, tokens, width)
        self.mean = torch.zeros_like(self.soft)  # AdamW's first moment
        self.square = torch.zeros_like(self.soft)  # AdamW's second moment
        self.count = torch.zeros(lanes, 1, 1, dtype=like.dtype, device=like.device)  # steps since the lane's start
        self.best_ids = first.clone()  # (lanes, tokens)
        self.best_score = torch.full((lanes,), -torch.inf, dtype=like.dtype, device=like.device)
        self.target: Tensor | None = None  # (lanes, ...), shaped by the first task
        self.tasks: list[Task | None] = [None] * lanes
        self.taken = [0] * lanes  # steps of the lane's task, over all restarts

    @property
    def free(self) -> bool:
        return None in self.tasks

    @property
    def busy(self) -> bool:
        return any(self.tasks)

    def admit(self, task: Task) -> None:
        """Give a task a free lane.

        Raises:
            ValueError: initial ids of another length than the settings' tokens.
        """
        lane = self.tasks.index(None)
        ids = task.initial_ids
        if ids is not None and ids.shape != (self.settings.tokens,):
            raise ValueError(f"initial_ids have shape {tuple(ids.shape)}; expected ({self.settings.tokens},)")
        if self.target is None:
            self.target = torch.zeros(len(self.tasks), *task.target.shape, dtype=task.target.dtype).to(self.soft.device)
        self.tasks[lane], self.taken[lane] = task, 0
        self.target[lane] = task.target
        self.best_score[lane] = -torch.inf
        self._start(lane, task, restart=0)

    def step(self, on_step: Callable[[Step], None] | None = None) -> None:
        """One step of Algorithm 1 in every lane."""
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
                on_step(Step(self.tasks[rows], ids, score, best_ids.clone(), best_score.clone()))
            count += 1
            adamw(soft, gradient, self.mean[rows], self.square[rows], count, settings.learning_rate, settings.decay)

        for lane, task in enumerate(self.tasks):
            if task is not None:
                self.taken[lane] += 1
                restart, ended = divmod(self.taken[lane], settings.steps)
                if ended == 0 and restart < settings.restarts:
                    self._start(lane, task, restart)

    def ended(self) -> list[Learned]:
        """Take the tasks out that have had all their steps."""
        total = self.settings.steps * self.settings.restarts
        done = [i for i, task in enumerate(self.tasks) if task is not None and self.taken[i] == total]
        if not done:
            return []
        best_ids, best_score = self.best_ids[done].cpu(), self.best_score[done].tolist()
        results = []
        for lane, token_ids, score in zip(done, best_ids, best_score, strict=True):
            task = self.tasks[lane]
            assert task is not None
            results.append(Learned(task, token_ids, score, total))
            self.tasks[lane] = None
        return results

    def _rows(self) -> int:
        """How many of the lanes to compute.

        All of them on an accelerator, where shapes must not change. On a CPU those up to the last busy one, in whole
        sixteens: the bits are the same for any number of sixteens (EXPERIMENTS.md, "Lanes and bits").
        """
        if self.soft.device.type != "cpu":
            return len(self.tasks)
        last = max(i for i, task in enumerate(self.tasks) if task is not None)
        return min(len(self.tasks), sixteens(last + 1))

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
    """One AdamW update in place, with a step count for each lane.

    Args:
        parameter, gradient, mean, square: (lanes, tokens, width) float.
        count: (lanes, 1, 1) float, steps taken, this one included.

    The operations and their order are those of torch.optim.AdamW, so that one lane moves bit for bit as there.
    Source: Loshchilov and Hutter 2019, arXiv:1711.05101, Algorithm 2.
    """
    parameter.mul_(1 - rate * decay)
    mean.lerp_(gradient, 1 - BETA1)
    square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
    correction1, correction2 = 1 - BETA1**count, 1 - BETA2**count
    denominator = (square.sqrt() / correction2.sqrt()).add_(EPSILON)
    parameter.sub_(mean / denominator * (rate / correction1))


def sixteens(count: int) -> int:
    """The next multiple of 16."""
    return -(-count // 16) * 16


def generator_for(seed: int, key: str, restart: int) -> torch.Generator:
    """A CPU generator that depends on nothing but its arguments."""
    digest = hashlib.sha256(f"{seed}|{restart}|{key}".encode("utf-8", "surrogateescape")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
