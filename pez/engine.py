"""The engine: submit tasks, step, and collect finished prompts. Tasks are learned side by side in lanes.

    engine = Engine(objective, vocabulary, settings, lanes=64)
    engine.submit(task)
    while engine.busy:
        finished = engine.step()

A method is a chain of phases. The walk (`methods/pez.py`) learns one prompt per lane; a finished lane takes the next task.
The walk never settles, so the method "default" then improves prompts by swaps (`methods/swaps.py`). Swaps run in batches: as
soon as there are as many prompts as lanes, or when the walk is idle.

Running out of device memory is handled here and nowhere else. The phase that ran out continues with half the lanes, warns
once and keeps the lower number.
"""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch

from pez.errors import UserError
from pez.methods.pez import Walk, round_up_to_16
from pez.methods.swaps import improve
from pez.modes import own_modes
from pez.objectives.objective import Objective
from pez.settings import PezSettings
from pez.tasks import Learned, Step, Task
from pez.vocabulary import Vocabulary

OnStep = Callable[[Step], None]


class Engine:
    """Learns a prompt for every task, a fixed number at a time.

    Args:
        objective: scores soft prompts.
        vocabulary: the tokens that prompts are made of; soft prompts have its dtype.
        lanes: prompts learned side by side. With a multiple of 16, a result depends bit for bit on its task alone (matrix
            libraries take different code paths for fewer rows).
        on_step: called after each gradient step and each round of swaps. Reading its tensors synchronizes with the device.

    Use it from one thread; other threads may read `learning` and `steps`.
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
        self._queue: deque[Task] = deque()  # submitted, waiting for a lane
        self._walked: list[Learned] = []  # waiting for swaps
        self._swapping = self._rounds = 0  # size of the batch in the swaps, and rounds done

    def clear(self) -> None:
        """Forget all tasks, but keep the lane counts that fit in memory."""
        self._walk.clear()
        self._queue.clear()
        self._walked = []

    @property
    def free(self) -> int:
        """Tasks that would start in the next step if submitted now."""
        return max(0, self._walk.free - len(self._queue))

    @property
    def busy(self) -> bool:
        """Whether a task is unfinished."""
        return bool(self._queue or self._walk.tasks or self._walked)

    @property
    def learning(self) -> int:
        """Prompts in progress."""
        return len(self._walk.tasks) + len(self._walked) + self._swapping

    @property
    def steps(self) -> int:
        """Gradient steps and rounds of swaps done so far for the prompts in progress."""
        walked = (len(self._walked) + self._swapping) * self.settings.walk_steps
        return sum(self._walk.taken) + walked + self._swapping * self._rounds

    def submit(self, task: Task) -> None:
        """Add a task. It starts in the next step, or as soon as a lane is free.

        Raises:
            UserError: the number of initial ids differs from the settings' tokens.
        """
        ids = task.initial_ids
        if ids is not None and ids.shape != (self.settings.tokens,):
            raise UserError(f"initial_ids have shape {tuple(ids.shape)}; expected ({self.settings.tokens},)")
        self._queue.append(task)

    def step(self) -> list[Learned]:
        """Do one gradient step in every busy lane, and swap a batch when it is full or the walk is idle.

        Returns:
            the finished prompts; often none.

        Raises:
            torch.OutOfMemoryError: not enough memory for 16 lanes.
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
            tasks: consumed as lanes become free, so it may be endless.

        Yields:
            lists of the results that finish in the same step.
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
        # Outside the except block, because the error keeps the failed step's tensors alive.
        warnings.warn(f"out of memory with {self._walk.lanes} lanes; continuing with {smaller}", stacklevel=3)
        # The tasks start over: a result does not depend on earlier work.
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
                lanes = min(lanes, round_up_to_16(len(part)))
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
    """Half of the lanes, a multiple of 16; 0 = no smaller number is possible."""
    return lanes // 32 * 16
