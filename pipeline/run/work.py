"""The work of one stage: which task runs next, and what happens when a task fails or its executor is lost.

An executor is an actor, or this process. When it dies, hangs or loses its node, its tasks return to the queue. The
number of attempts per task is bounded: `attempts` that fail, four times as many that are lost with a node, and, when memory
runs short, any number as long as other tasks finish. This module neither starts executors nor waits for them.
"""

import dataclasses
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from pipeline.errors import one_line
from pipeline.run.stage import OnFailure
from pipeline.run.tasks import Merge, Part, Task
from pipeline.sources.base import Unit

_LESS_MEMORY = "fewer --actors or smaller --lanes need less memory"


@dataclasses.dataclass(eq=False)
class Work:
    """A task and its previous attempts."""

    task: Task
    attempts: int = 0
    """failed attempts"""
    losses: int = 0
    """attempts lost with a node"""
    not_before: float = 0.0
    """earliest time of the next attempt"""
    alone: bool = False
    """its executor died while it ran beside others; the next attempt runs alone, to find out whether it is to blame"""
    ended_by_memory: bool = False
    """memory ran short during at least one attempt"""


@dataclasses.dataclass(eq=False)
class Executor:
    """An executor and the tasks that it is running."""

    ready: bool = True
    """it has started and can take tasks"""
    works: list[Work] = dataclasses.field(default_factory=list)
    """oldest first"""
    deadline: float = math.inf
    """of the oldest task"""
    idle_since: float = 0.0
    """when it last had a task, or joined"""
    shortages: int = 0
    """memory shortages in this stage before it started"""


E = TypeVar("E", bound=Executor)


class WorkQueue(Generic[E]):
    """The tasks of one stage and the executors that run them.

    Args:
        name: of the stage, for messages; empty if there is only one.
        attempts: failed attempts after which a task is given up. Errors with a true `permanent` are not retried.
        timeout: seconds for an attempt.
        limit: the most executors.
        concurrent: maximum number of tasks that an executor runs concurrently.
        on_note: called with one line for each failure that is retried.
        on_failure: called for each failed attempt, with the task, the reason and the traceback.
        clock: monotonic time in seconds.
    """

    def __init__(
        self,
        name: str = "",
        *,
        attempts: int = 1,
        timeout: float = math.inf,
        limit: int = 1,
        concurrent: int = 1,
        on_note: Callable[[str], None] = lambda _: None,
        on_failure: OnFailure = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.attempts, self.timeout, self.limit, self.concurrent = name, attempts, timeout, limit, concurrent
        self.on_note, self.on_failure, self.clock = on_note, on_failure, clock
        self.waiting: deque[Work] = deque()
        self.executors: list[E] = []
        self.beside: Sequence[WorkQueue[E]] = ()
        """the queues of the other stages"""
        self.given_up: dict[str, str] = {}
        """reason by URL of the unit"""
        self._parts_done: Counter[str] = Counter()
        self._no_start_before = 0.0
        self._shortages = 0
        """number of memory shortages"""
        self._in_a_row = 0
        """shortages since a task last finished"""
        self._in_vain = 0
        """of these, those after which no stage was running anything"""
        self._starts_in_vain = 0
        """starts that failed for lack of memory since an executor was last ready"""

    @property
    def busy(self) -> bool:
        """Whether any task is running."""
        return any(executor.works for executor in self.executors)

    @property
    def unfinished(self) -> bool:
        return bool(self.waiting) or self.busy

    @property
    def starved(self) -> bool:
        """Whether tasks wait and no executor is ready, perhaps for lack of resources."""
        return bool(self.waiting) and not any(executor.ready for executor in self.executors)

    def add(self, tasks: Iterable[Task]) -> None:
        self.waiting.extend(Work(task) for task in tasks)

    def join(self, executor: E) -> None:
        """Add an executor, which gets tasks once it is ready."""
        executor.shortages, executor.idle_since = self._shortages, self.clock()
        self.executors.append(executor)

    def started(self, executor: E) -> None:
        """Note that an executor is ready."""
        executor.ready, executor.idle_since = True, self.clock()
        self._starts_in_vain = 0

    def missing(self) -> int:
        """How many executors to start: at most one for each task that no idle executor can take."""
        if self.clock() < self._no_start_before:
            return 0
        idle = sum(not executor.works for executor in self.executors)
        return max(0, min(self.limit - len(self.executors), len(self.waiting) - idle))

    def surplus(self, keep: int, seconds: float) -> list[E]:
        """Executors above a number that have been without a task for this long while none waits."""
        if self.waiting:
            return []
        before = self.clock() - seconds
        idle = [executor for executor in self.executors if not executor.works and executor.idle_since <= before]
        return idle[: max(0, len(self.executors) - keep)]

    def assign(self) -> list[tuple[E, Work]]:
        """Assign waiting tasks to executors; each gets its first before any gets its second."""
        given = []
        for held in range(self._room()):
            for executor in self.executors:
                if not executor.ready or len(executor.works) != held or any(w.alone for w in executor.works):
                    continue
                if (work := self._next(alone=not held)) is not None:
                    if not held:
                        executor.deadline = self.clock() + self.timeout
                    executor.works.append(work)
                    given.append((executor, work))
        return given

    def seconds_to_next(self) -> float:
        """Seconds until the next attempt of a waiting task."""
        return max(0.0, min((work.not_before for work in self.waiting), default=0.0) - self.clock())

    def done(self, executor: E, work: Work) -> Unit | None:
        """Note that a task is done; after the last part of a unit, add the merge.

        Returns:
            the unit that has now left this stage, if any.
        """
        self._take_back(executor, work)
        self._in_a_row = self._in_vain = 0
        task = work.task
        if not isinstance(task, Part):
            return task.unit
        self._parts_done[task.unit.url] += 1
        if self._parts_done[task.unit.url] == task.parts:
            del self._parts_done[task.unit.url]
            self.waiting.appendleft(Work(Merge(task.unit, task.parts)))
        return None

    def failed(self, executor: E, work: Work, error: BaseException | None, trace: str) -> None:
        """Handle a task that raised an error; its executor keeps running."""
        self._take_back(executor, work)
        reason = one_line(error)
        self._record([work], reason, trace)
        work.attempts += 1
        self._retry(work, reason, retry_delay(work.attempts), permanent=getattr(error, "permanent", False))

    def died(self, executor: E, reason: str) -> None:
        """Handle the death of an executor, caused by one of its tasks.

        If it had several, the culprit is unknown: this does not count as an attempt, and each is retried alone.
        """
        works = self._dismiss(executor)
        self._record(works, reason)
        if len(works) == 1:
            works[0].attempts += 1
            self._retry(works[0], reason)
        elif works:
            for work in works:
                work.alone = True
            self.waiting.extend(works)
            self.on_note(f"{_names(works)}: {self._of_stage(reason)}. Retrying one at a time")

    def node_lost(self, executor: E) -> None:
        """Handle the loss of an executor with its node; no task is to blame."""
        works = self._dismiss(executor)
        self._record(works, "the node was lost")
        for work in works:
            work.losses += 1
            self._retry(work, "the node was lost")

    def expire(self) -> list[E]:
        """Take back the tasks of executors whose oldest task has timed out; this is not an attempt of their other tasks.

        Returns:
            these executors; the caller ends them.
        """
        late = [executor for executor in self.executors if executor.works and self.clock() > executor.deadline]
        for executor in late:
            oldest, *others = self._dismiss(executor)
            reason = f"timed out after {self.timeout:g} s"
            self._record([oldest], reason)
            oldest.attempts += 1
            self._retry(oldest, reason)
            self.waiting.extendleft(reversed(others))
        return late

    def memory_short(self, executor: E, reason: str) -> None:
        """Handle an executor that was killed because its node ran short of memory; its tasks are not to blame.

        They are retried alone after a delay, without limit as long as other tasks finish. If nothing finishes, they are
        given up after a few shortages.
        """
        works = self._dismiss(executor)
        self._record(works, reason)
        fresh = executor.shortages == self._shortages  # one shortage may kill several executors
        self._shortages += fresh
        self._in_a_row += fresh
        wait = retry_delay(self._in_a_row)
        self._no_start_before = self.clock() + wait
        for work in works:
            work.alone = work.ended_by_memory = True
            work.not_before = self._no_start_before
        self.waiting.extend(works)
        if self._memory_stays_short(fresh, bool(works)):
            self._in_a_row = self._in_vain = self._starts_in_vain = 0
            for work in [work for work in self.waiting if work.ended_by_memory or not works]:
                self.waiting.remove(work)
                self._give_up(work, reason, self._shortages_allowed)
            self.on_note(f"{self._of_stage(reason)}; {_LESS_MEMORY}")
        elif works:
            self.on_note(f"{_names(works)}: {self._of_stage(reason)}. Retrying in {wait:g} s; {_LESS_MEMORY}")
        elif fresh:
            self.on_note(f"{self._of_stage(reason)}. Restarting the actor in {wait:g} s; {_LESS_MEMORY}")

    @property
    def _shortages_allowed(self) -> int:
        return max(self.attempts, 3)

    def _memory_stays_short(self, fresh: bool, had_work: bool) -> bool:
        in_vain = fresh and not any(queue.busy for queue in (self, *self.beside))
        if had_work:
            self._in_vain += in_vain
            return self._in_vain >= self._shortages_allowed or self._in_a_row >= 10 * self._shortages_allowed
        self._starts_in_vain += in_vain and not any(executor.ready for executor in self.executors)
        return self._starts_in_vain >= self._shortages_allowed

    def _room(self) -> int:
        """How many tasks an executor may have now; fewer near the end, so that all finish together."""
        if self.limit == 1:
            return self.concurrent
        left = len(self.waiting) + sum(len(executor.works) for executor in self.executors)
        return max(1, min(self.concurrent, left // (2 * self.limit)))

    def _next(self, alone: bool) -> Work | None:
        """Take the first task that is due; tasks that must run alone are only for executors without tasks."""
        now = self.clock()
        work = next((w for w in self.waiting if w.not_before <= now and (alone or not w.alone)), None)
        if work is not None:
            self.waiting.remove(work)
        return work

    def _take_back(self, executor: E, work: Work) -> None:
        if executor.works[0] is work:
            executor.deadline = self.clock() + self.timeout  # of the next task
        executor.works.remove(work)
        executor.idle_since = self.clock()

    def _dismiss(self, executor: E) -> list[Work]:
        """Remove an executor; return what it was running."""
        self.executors.remove(executor)
        works, executor.works = executor.works, []
        return works

    def _retry(self, work: Work, reason: str, wait: float = 0.0, permanent: bool = False) -> None:
        if permanent or work.attempts >= self.attempts or work.losses >= 4 * self.attempts:
            self._give_up(work, reason, work.attempts + work.losses)
            return
        work.not_before = self.clock() + wait
        self.waiting.append(work)
        when = f" in {wait:g} s" if wait else ""
        self.on_note(f"{work.task}: {self._of_stage(reason).rstrip('.')}. Retrying{when}")

    def _give_up(self, work: Work, reason: str, attempts: int) -> None:
        count = f" ({attempts} attempts)" if attempts > 1 else ""
        stage = f"{self.name}{work.task.detail}".removeprefix(", ")
        self.given_up[work.task.unit.url] = f"{stage}: {reason}{count}" if stage else f"{reason}{count}"

    def _record(self, works: Sequence[Work], reason: str, trace: str = "") -> None:
        for work in works:
            self.on_failure(work.task, self._of_stage(reason), trace)

    def _of_stage(self, reason: str) -> str:
        return f"{self.name}: {reason}" if self.name else reason


def retry_delay(failures: int) -> float:
    """Seconds before a failed task is retried: 1, 2, 4 up to 60, so that several attempts outlast an outage of a store."""
    return min(2.0 ** (failures - 1), 60.0)


def _names(works: Sequence[Work]) -> str:
    return ", ".join(str(work.task) for work in works)
