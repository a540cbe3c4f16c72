"""The engine: submit tasks, step, and collect finished prompts. Tasks are learned side by side in lanes.

    engine = Engine(objective, vocabulary, settings, lanes=64)
    engine.submit(task)
    while engine.busy:
        finished = engine.step()

A method is a chain of phases (`methods/chains.py`). The default's first is the walk (`methods/pez.py`): it learns one prompt
per lane, and a finished lane takes the next task. The walk never settles, so a second phase improves prompts by swaps
(`methods/swaps.py`). Swaps run in batches: as soon as there are as many prompts as lanes, or when the walk is idle.

With restarts, each task is searched so many times, in lanes of their own, and the best prompt of them is returned. With
finalists, only the best of a task's searches go on after the first phase, by the score of the prompt and the weighted scores
of its tokens. To swap one of many is cheaper than to swap all, and the choice before the swaps is the better one under other
models: swaps raise the score under this model most where they exploit it (EXPERIMENTS.md, "Swaps for the best search only").

Running out of device memory is handled here and nowhere else. The phase that ran out continues with half the lanes, warns
once and keeps the lower number. Its prompts start over: a result does not depend on earlier work.
"""

import dataclasses
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import torch

from pez.errors import UserError
from pez.methods.chains import phases_of
from pez.methods.phase import OnStep, Phase, started
from pez.methods.seen import SeenPrompts
from pez.modes import own_modes
from pez.objectives.objective import Objective
from pez.settings import PezSettings
from pez.tasks import Learned, Task
from pez.vocabulary import Vocabulary


class Engine:
    """Learns a prompt for every task, a fixed number at a time.

    Args:
        objective: scores soft prompts.
        vocabulary: the tokens that prompts are made of; soft prompts have its dtype.
        lanes: prompts learned side by side. With a multiple of 16, a result depends bit for bit on its task alone (matrix
            libraries take different code paths for fewer rows).
        on_step: called after each gradient step and each round of swaps. Reading its tensors synchronizes with the device.
        phases: what every task passes through; default = the phases of the settings' method.

    Use it from one thread; other threads may read `learning`, `busy_lanes` and `steps`.
    """

    def __init__(
        self,
        objective: Objective,
        vocabulary: Vocabulary,
        settings: PezSettings,
        lanes: int,
        on_step: OnStep | None = None,
        phases: Sequence[Phase] | None = None,
    ) -> None:
        settings = settings.for_vocabulary(len(vocabulary.ids))
        self.objective, self.vocabulary, self.settings, self.lanes = objective, vocabulary, settings, lanes
        self._on_step = on_step
        with own_modes():
            self._phases = list(phases or phases_of(objective, vocabulary, settings, lanes))
        self._waiting: list[deque[Learned]] = [deque() for _ in self._phases]  # for a lane of each phase
        self._walked: dict[int, list[Learned]] = {}  # of tasks, by id, whose other restarts are in the first phase
        self._ended: dict[int, list[Learned]] = {}  # of tasks, by id, whose other restarts are in progress

    def clear(self) -> None:
        """Forget all tasks, but keep the lane counts that fit in memory."""
        for phase, waiting in zip(self._phases, self._waiting, strict=True):
            phase.clear()
            waiting.clear()
        self._walked.clear()
        self._ended.clear()

    @property
    def free(self) -> int:
        """Tasks that would start in the next step if submitted now, with one of their restarts at least."""
        return -(-max(0, self._phases[0].free - len(self._waiting[0])) // self.settings.searches)

    @property
    def busy(self) -> bool:
        """Whether a task is unfinished."""
        return any(self._waiting) or any(phase.prompts for phase in self._phases) or bool(self._walked)

    @property
    def learning(self) -> int:
        """Tasks in progress."""
        return len({id(prompt.task) for prompt in self._begun()})

    @property
    def busy_lanes(self) -> int:
        """Searches in progress: one for each restart of a task."""
        return sum(len(waiting) for waiting in self._waiting[1:]) + sum(len(phase.prompts) for phase in self._phases)

    @property
    def steps(self) -> int:
        """Gradient steps and rounds of swaps done so far for the tasks in progress, over all restarts."""
        ended = sum(len(restarts) for restarts in list(self._ended.values()))
        taken = sum(prompt.steps for prompt in self._begun()) + sum(phase.steps for phase in self._phases)
        return taken + ended * self.settings.rounds

    def submit(self, task: Task) -> None:
        """Add a task. It starts in the next step, or as soon as a lane is free.

        Raises:
            UserError: the number of initial ids differs from the settings' tokens.
        """
        ids = task.initial_ids
        if ids is not None and ids.shape != (self.settings.tokens,):
            raise UserError(f"initial_ids have shape {tuple(ids.shape)}; expected ({self.settings.tokens},)")
        with own_modes():
            restarts = range(self.settings.searches)
            task = dataclasses.replace(task)  # restarts are told by it, even if a task is submitted twice
            self._waiting[0].extend(started(task, self.vocabulary, self.settings, restart) for restart in restarts)

    def step(self) -> list[Learned]:
        """Do one gradient step in every busy lane, and swap a batch when it is full or the walk is idle.

        Returns:
            the finished prompts; often none.

        Raises:
            torch.OutOfMemoryError: not enough memory for 16 lanes.
        """
        with own_modes():
            more = False  # whether an earlier phase is busy
            finished: list[Learned] = []  # what the phase before returned
            for i, waiting in enumerate(self._waiting):
                waiting.extend(finished)
                while waiting and self._phases[i].free:
                    self._phases[i].admit(waiting.popleft())
                busy = more or bool(waiting or self._phases[i].prompts)
                finished = self._step(i, more)
                if i == 0 and self.settings.improved < self.settings.searches:
                    finished = self._finalists(finished)
                more = busy
            return finished if self.settings.improved == 1 else self._best_of_restarts(finished)

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

    def _begun(self) -> list[Learned]:
        """The searches of tasks in progress: those in a phase, between phases, and those that have ended."""
        begun = [prompt for waiting in self._waiting[1:] for prompt in list(waiting)]
        begun += [prompt for phase in self._phases for prompt in phase.prompts]
        held = [*list(self._walked.values()), *list(self._ended.values())]
        return begun + [prompt for restarts in held for prompt in list(restarts)]

    def _finalists(self, finished: Sequence[Learned]) -> list[Learned]:
        """Of tasks of which no restart is in the first phase any more: the prompts that go on, the best first.

        The best one takes the steps and the distinct prompts of those that do not go on.
        """
        count, chosen = self.settings.improved, list[Learned]()
        for walked in _complete(self._walked, finished, self.settings.searches):
            values = self._values_in_memory(walked)
            del self._walked[id(walked[0].task)]
            ranked = [walked[i] for i in sorted(range(len(walked)), key=lambda i: -values[i])]
            chosen += [_merged(ranked[0], ranked[count:], self.settings), *ranked[1:count]]
        return chosen

    def _values_in_memory(self, walked: Sequence[Learned]) -> list[float]:
        """The values; out of memory, the first phase continues with half the lanes."""
        while True:
            try:
                return self._values(walked)
            except torch.OutOfMemoryError:
                halved = self._phases[0].halved()
                if halved is None:
                    raise
            self._continue_with(0, *halved)

    def _values(self, walked: Sequence[Learned]) -> list[float]:
        """What the choice among a task's prompts goes by: the score, and the weighted mean score of the tokens alone."""
        scores = [learned.score for learned in walked]
        if not self.settings.weight_of_tokens:
            return scores
        device = self.vocabulary.embedding.device
        ids = torch.stack([learned.token_ids for learned in walked]).to(device)  # (searches, tokens)
        with torch.no_grad():  # shapes do not depend on other tasks, so neither do bits
            alone = self.objective.score_tokens(ids.view(1, -1), walked[0].task.target.to(device).unsqueeze(0))
        means = alone.view(ids.shape).double().mean(-1).tolist()
        return [score + self.settings.weight_of_tokens * mean for score, mean in zip(scores, means, strict=True)]

    def _best_of_restarts(self, finished: Sequence[Learned]) -> list[Learned]:
        """The results of tasks of which no restart is in progress any more: the best score, the first of several."""
        whole = []
        for ended in _complete(self._ended, finished, self.settings.improved):
            del self._ended[id(ended[0].task)]
            best = max(ended, key=lambda learned: learned.score)
            whole.append(_merged(best, [one for one in ended if one is not best], self.settings))
        return whole

    def _step(self, i: int, more: bool) -> list[Learned]:
        """Step one phase; out of memory, it continues with half the lanes."""
        phase = self._phases[i]
        try:
            return phase.step(more or bool(self._waiting[i]), self._on_step)
        except torch.OutOfMemoryError:
            halved = phase.halved()
            if halved is None:
                raise
        # Outside the except block, because the error keeps the failed step's tensors alive.
        self._continue_with(i, *halved)
        return []

    def _continue_with(self, i: int, smaller: Phase, message: str) -> None:
        """Replace a phase that is too large for the memory; its prompts start over."""
        warnings.warn(message, stacklevel=4)
        self._waiting[i].extendleft(reversed(self._phases[i].prompts))
        self._phases[i] = smaller


def _complete(held: dict[int, list[Learned]], finished: Sequence[Learned], count: int) -> list[list[Learned]]:
    """Hold what has finished; returns the held restarts, in their order, of each task that has so many."""
    for learned in finished:
        held.setdefault(id(learned.task), []).append(learned)
    return [sorted(restarts, key=lambda one: one.restart) for restarts in held.values() if len(restarts) == count]


def _merged(best: Learned, others: Sequence[Learned], settings: PezSettings) -> Learned:
    """The best of a task's restarts with the steps and the best distinct prompts of the others too."""
    seen = best.seen
    if seen is not None:
        kept = SeenPrompts(1, settings, torch.device("cpu"))
        for one in sorted([best, *others], key=lambda one: one.restart):
            if one.seen is not None:
                ids, score = one.seen
                kept.add(slice(0, 1), ids.unsqueeze(0), score.unsqueeze(0))
        seen = kept.of(0)
    return dataclasses.replace(best, steps=best.steps + sum(one.steps for one in others), seen=seen)
