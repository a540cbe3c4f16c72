"""Lanes that tasks are pushed through: submit tasks, step, and take the prompts that are finished.

    engine = Engine(objective, vocabulary, settings, lanes=64)
    engine.submit(task)
    while engine.busy:
        finished = engine.step()

A method is a chain of phases. The walk (`methods/pez.py`) learns a prompt in each lane, and a lane that is finished takes the
next task. The method "default" then improves prompts by swaps (`methods/swaps.py`), since the walk never settles: in batches
of as many prompts as there are lanes, or of those that wait when the walk is idle.

The engine is the one place that meets the end of the device's memory. A phase that ran out of it goes on with half the lanes,
with a warning, and keeps to that number.
"""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch

from pez.errors import UserError
from pez.methods.pez import Walk, sixteens
from pez.methods.swaps import improve
from pez.modes import own_modes
from pez.objectives.objective import Objective
from pez.settings import PezSettings
from pez.tasks import Learned, Step, Task
from pez.vocabulary import Vocabulary

OnStep = Callable[[Step], None]


class Engine:
    """Learns a prompt for every task, so many side by side.

    Args:
        objective: scores soft prompts.
        vocabulary: the tokens that prompts are made of; its dtype is that of the soft prompts.
        lanes: prompts learned side by side. With a multiple of 16 a result depends bit for bit on its task alone (matrix
            libraries take other code paths for fewer rows).
        on_step: called after each gradient step and each round of swaps; reading its tensors makes the host wait for the
            device.

    One thread uses it; others may read `learning` and `steps`.
    """

    def __init__(
        self,
        objective: Objective,
        vocabulary: Vocabulary,
        settings: PezSettings,
        lanes: int,
        on_step: OnStep | None = None,
    ) -> None:
        self.objective, self.vocabulary, self.settings, self.lanes = objective, vocabulary, settings, lanes
        self._on_step = on_step
        with own_modes():
            self._walk = Walk(objective, vocabulary, settings, lanes)
        self._swap_lanes = lanes
        self._queue: deque[Task] = deque()  # submitted, without a lane yet
        self._walked: list[Learned] = []  # waiting for swaps
        self._swapping = self._rounds = 0  # prompts of the batch in the swaps, and the rounds it has had

    def clear(self) -> None:
        """Forget all tasks; the numbers of lanes that memory allows are kept."""
        self._walk.clear()
        self._queue.clear()
        self._walked = []

    @property
    def free(self) -> int:
        """Tasks that would start in the next step if they were submitted now."""
        return max(0, self._walk.free - len(self._queue))

    @property
    def busy(self) -> bool:
        """Whether a task is unfinished."""
        return bool(self._queue or self._walk.tasks or self._walked)

    @property
    def learning(self) -> int:
        """Prompts that have begun and are not finished."""
        return len(self._walk.tasks) + len(self._walked) + self._swapping

    @property
    def steps(self) -> int:
        """Gradient steps and rounds of swaps that these have had, together."""
        walked = (len(self._walked) + self._swapping) * self.settings.walk_steps
        return sum(self._walk.taken) + walked + self._swapping * self._rounds

    def submit(self, task: Task) -> None:
        """Add a task; it starts in the next step, or when a lane is free.

        Raises:
            UserError: initial ids of another length than the settings' tokens.
        """
        ids = task.initial_ids
        if ids is not None and ids.shape != (self.settings.tokens,):
            raise UserError(f"initial_ids have shape {tuple(ids.shape)}; expected ({self.settings.tokens},)")
        self._queue.append(task)

    def step(self) -> list[Learned]:
        """One gradient step in every busy lane, and the swaps of a batch when one is complete or the walk is idle.

        Returns:
            the prompts that are finished; often none.

        Raises:
            torch.OutOfMemoryError: the memory does not suffice for 16 lanes.
        """
        with own_modes():
            while self._queue and self._walk.free:
                self._walk.admit(self._queue.popleft())
            idle = not self._walk.tasks
            finished = [] if idle else self._step_walk()
            if not self.settings.rounds:
                return finished
            self._walked += finished
            if not self._walked or (len(self._walked) < self.lanes and not idle):
                return []
            batch, self._walked = self._walked[: self.lanes], self._walked[self.lanes :]
            return self._swap(batch)

    def run(self, tasks: Iterable[Task]) -> Iterator[list[Learned]]:
        """Learn for all tasks.

        Args:
            tasks: drawn from when a lane is free, so it may be endless.

        Yields:
            results in lists of those that finish in the same step.
        """
        waiting = iter(tasks)
        more = True
        while True:
            while more and self.free:
                task = next(waiting, None)
                if task is None:
                    more = False
                else:
                    self.submit(task)
            if not self.busy:
                return
            if finished := self.step():
                yield finished

    def _step_walk(self) -> list[Learned]:
        try:
            self._walk.step(self._on_step)
            return self._walk.take_finished()
        except torch.OutOfMemoryError:
            smaller = _half(self._walk.lanes)
            if not smaller:
                raise
        # Not inside the except: the error holds what the failed step has in memory.
        warnings.warn(f"out of memory with {self._walk.lanes} lanes; continuing with {smaller}", stacklevel=3)
        # The tasks begin again: a result does not depend on what was done before.
        again = [task for _, task in sorted(self._walk.tasks.items())]
        self._queue.extendleft(reversed(again))
        self._walk = Walk(self.objective, self.vocabulary, self.settings, smaller)
        return []

    def _swap(self, batch: list[Learned]) -> list[Learned]:
        finished: list[Learned] = []
        while rest := batch[len(finished) :]:
            part = rest[: self._swap_lanes]
            lanes = self._swap_lanes
            if self.vocabulary.embedding.device.type == "cpu":
                lanes = min(lanes, sixteens(len(part)))
            self._swapping, self._rounds = len(rest), 0
            try:
                finished += improve(self.objective, self.vocabulary, part, self.settings, lanes, self._after_round)
                continue
            except torch.OutOfMemoryError:
                smaller = _half(lanes)
                if not smaller:
                    raise
            finally:
                self._swapping = 0
            warnings.warn(f"out of memory with swaps of {lanes} lanes; continuing with {smaller}", stacklevel=3)
            self._swap_lanes = smaller
        return finished

    def _after_round(self, step: Step) -> None:
        self._rounds += 1
        if self._on_step is not None:
            self._on_step(step)


def _half(lanes: int) -> int:
    """Half of the lanes, in whole sixteens; 0 = there is no smaller number."""
    return lanes // 32 * 16
