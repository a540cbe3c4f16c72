"""What goes through the engine: a task, the prompt that was learned for it, and what a step shows of both."""

import dataclasses
from typing import Any

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Task:
    """One prompt to learn."""

    key: str
    """with the settings' seed, fixes the random start"""
    target: Tensor
    """what the objective scores against, one lane's worth: (dim,) for a direction"""
    initial_ids: Tensor | None = None
    """(tokens,) int64 token ids of the first start; None = random"""
    handle: Any = None
    """anything that the caller wants to find again on the result"""


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
    """The busy lanes in one gradient step, before the update, or after one round of swaps; row i is that of tasks[i]."""

    tasks: list[Task]
    token_ids: Tensor
    """(tasks, tokens) int64"""
    score: Tensor
    """(tasks,) float"""
    best_ids: Tensor
    """(tasks, tokens) int64, the best of each task so far, this step included"""
    best_score: Tensor
    """(tasks,) float"""
