"""The protocol of methods: a method is a chain of phases, and the engine passes prompts from one to the next.

Two kinds of phase exist. A walk (`pez.py` and its variants) does one step in every lane at each call, and a finished lane takes
the next prompt. A batch (`Batch`, here) waits until it is full and searches for all its prompts at once.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pez.objectives.objective import Objective
from pez.seeds import generator_for
from pez.settings import PezSettings
from pez.tasks import Learned, Step, Task
from pez.vocabulary import Vocabulary

OnStep = Callable[[Step], None]
_ROWS_AT_ONCE = 1024  # prompts scored in one batch


class Phase(Protocol):
    """A part of a method: takes prompts, improves each in a lane of its own, and returns them.

    What it returns for a prompt depends on the prompt, its target, the settings and the seed, not on its neighbors.
    """

    lanes: int
    """prompts side by side, a multiple of 16"""

    @property
    def prompts(self) -> list[Learned]:
        """Those in progress, as they were admitted."""
        ...

    @property
    def free(self) -> int:
        """Idle lanes."""
        ...

    @property
    def steps(self) -> int:
        """Steps taken so far in this phase, over the prompts in progress."""
        ...

    def admit(self, prompt: Learned) -> None:
        """Take a prompt to start from; there must be an idle lane."""
        ...

    def step(self, more: bool, on_step: OnStep | None) -> list[Learned]:
        """Do one step, or in a batch all of them.

        Args:
            more: whether further prompts are on their way to this phase.
            on_step: called with the state after each step.

        Returns:
            the finished prompts, which leave the phase; often none.

        Raises:
            torch.OutOfMemoryError: too little memory for so many lanes; `prompts` still has those in progress.
        """
        ...

    def clear(self) -> None:
        """Make all lanes idle."""
        ...

    def halved(self) -> "tuple[Phase, str] | None":
        """An empty phase of half the lanes, and a text that says so; None if there are too few."""
        ...


Search = Callable[[Objective, Vocabulary, list[Learned], PezSettings, int, OnStep], list[Learned]]
"""objective, vocabulary, at most `lanes` prompts, settings, lanes, and a function to call after each round; returns the prompts
in their order, improved"""


class Batch:
    """A phase that searches for all its prompts together, since its rounds are the same for all lanes.

    Args:
        search: does all rounds.
        noun: what it does, for messages.
    """

    def __init__(
        self,
        search: Search,
        noun: str,
        objective: Objective,
        vocabulary: Vocabulary,
        settings: PezSettings,
        lanes: int,
    ) -> None:
        self.search, self.noun = search, noun
        self.objective, self.vocabulary, self.settings, self.lanes = objective, vocabulary, settings, lanes
        self._prompts: list[Learned] = []
        self._rounds = 0

    @property
    def prompts(self) -> list[Learned]:
        return self._prompts

    @property
    def free(self) -> int:
        return self.lanes - len(self.prompts)

    @property
    def steps(self) -> int:
        return self._rounds * len(self.prompts)

    def admit(self, prompt: Learned) -> None:
        self._prompts.append(prompt)

    def clear(self) -> None:
        self._prompts, self._rounds = [], 0

    def step(self, more: bool, on_step: OnStep | None) -> list[Learned]:
        """Search once the batch is full, or no further prompt is on its way."""
        if not self.prompts or (more and self.free):
            return []

        def after_round(step: Step) -> None:
            self._rounds += 1
            if on_step is not None:
                on_step(step)

        self._rounds = 0
        found = self.search(
            self.objective, self.vocabulary, self.prompts, self.settings, self._lanes_used(), after_round
        )
        self.clear()
        return found

    def halved(self) -> "tuple[Batch, str] | None":
        used = self._lanes_used()
        if not (lanes := half_of(used)):
            return None
        smaller = Batch(self.search, self.noun, self.objective, self.vocabulary, self.settings, lanes)
        return smaller, f"out of memory with {self.noun} of {used} lanes; continuing with {lanes}"

    def _lanes_used(self) -> int:
        """On an accelerator, all lanes: shapes must not change. On a CPU, a multiple of 16 (see Walk)."""
        cpu = self.vocabulary.embedding.device.type == "cpu"
        return min(self.lanes, round_up_to_16(len(self.prompts))) if cpu else self.lanes


def started(task: Task, vocabulary: Vocabulary, settings: PezSettings, restart: int = 0) -> Learned:
    """What the first phase of a method starts from: in the first restart the task's initial ids, if any, or random ones."""
    ids = None if restart else task.initial_ids
    if ids is None:
        ids = vocabulary.random_ids(settings.tokens, generator_for(settings.seed, task.key, restart))
    return Learned(task, ids.cpu(), -math.inf, 0, restart=restart)


def side_by_side(prompts: Sequence[Learned], lanes: int, device: torch.device) -> tuple[Tensor, Tensor, list[Task]]:
    """Ids and targets of all lanes; the last prompt fills those that are left.

    Returns:
        (lanes, tokens) int64 ids, (lanes, ...) targets, and the task of each lane.
    """
    filled = [*prompts, *[prompts[-1]] * (lanes - len(prompts))]
    ids = torch.stack([prompt.token_ids for prompt in filled]).to(device)
    return ids, torch.stack([prompt.task.target for prompt in filled]).to(device), [prompt.task for prompt in filled]


def score_tried(
    objective: Objective, vocabulary: Vocabulary, kept: Any, start: int, tried: Tensor, target: Tensor
) -> Tensor:
    """Scores of (lanes, count, tokens) prompts that differ from the kept ones only from `start` on, (lanes, count)."""
    lanes_per_batch = max(1, _ROWS_AT_ONCE // tried.shape[1])
    if lanes_per_batch > 16:
        lanes_per_batch = lanes_per_batch // 16 * 16
    return torch.cat(
        [
            objective.score_changed(
                kept.rows(slice(first, first + lanes_per_batch)),
                start,
                vocabulary.embed(tried[first : first + lanes_per_batch, :, start:]),
                target[first : first + lanes_per_batch],
            )
            for first in range(0, len(tried), lanes_per_batch)
        ]
    )


def round_up_to_16(count: int) -> int:
    """The smallest multiple of 16 that is not below `count`."""
    return -(-count // 16) * 16


def half_of(lanes: int) -> int:
    """Half of the lanes, a multiple of 16; 0 = no smaller number is possible."""
    return lanes // 32 * 16
