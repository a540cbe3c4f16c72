"""The records of the engine: a task, its learned prompt, and a snapshot of one step."""

import dataclasses
from typing import Any

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Task:
    """One prompt to learn."""

    key: str
    """key and seed together determine the random start"""
    target: Tensor
    """what the objective scores against, for one lane: (dim,) for a direction"""
    initial_ids: Tensor | None = None
    """(tokens,) int64 token ids to start from; None = random"""
    handle: Any = None
    """any object; the result carries it back to the caller"""
    own_tokens: Tensor | None = None
    """(n,) int64 on the CPU: the tokens of a text to shorten, which rounds of swaps may take as well"""


@dataclasses.dataclass(frozen=True)
class Learned:
    """The best prompt found for a task so far: what a phase starts from, and what it returns."""

    task: Task
    token_ids: Tensor
    """(tokens,) int64, on the CPU; fewer with the method bank"""
    score: float
    steps: int
    """gradient steps taken; of a finished task, and of the best finalist, over all restarts"""
    soft_score: float | None = None
    """of the soft prompt that the tokens are the projection of; with the method soft only"""
    visited: Tensor | None = None
    """(n,) int64 on the CPU, ascending: the tokens that a walk has scored; None = not recorded"""
    seen: tuple[Tensor, Tensor] | None = None
    """the best distinct prompts scored so far, best first: (n, tokens) int64 and (n,) scores, on the CPU; None = not kept"""
    restart: int = 0
    """which of the task's independent searches this is"""


@dataclasses.dataclass(frozen=True)
class Step:
    """The busy lanes at one gradient step, before the update, or after one round of swaps. Row i belongs to tasks[i]."""

    tasks: list[Task]
    token_ids: Tensor
    """(tasks, tokens) int64"""
    score: Tensor
    """(tasks,) float"""
    best_ids: Tensor
    """(tasks, tokens) int64, the best of each task so far, including this step"""
    best_score: Tensor
    """(tasks,) float"""
    swapped: bool = False
    """after a round of swaps"""
