"""Lanes that several shards fill at once, so that none is idle while one shard ends and the next begins.

Each shard has a thread that reads and decodes it and waits for its results; one more thread learns. At most two shards are read
at a time, and the one that came first is served first: what a lost actor had begun is one or two shards, or all it had of small
ones. A prompt does not depend on its neighbours, so the rows are those of shard after shard.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeAlias, TypeVar

from pez.engine import Learned, Task
from pez.prompt import Prompt

Item = TypeVar("Item")
Result: TypeAlias = tuple[Learned, Prompt]

_READ_AT_ONCE = 2  # streams whose images are decoded and wait in memory


class SharedLanes(Generic[Item]):
    """Learns for many streams of images in one loop, in a thread of its own.

    Args:
        tasks_of: makes the tasks of a batch of images, one each.
        learn: learns a prompt for every task; None among the tasks says that none is ready yet.
        ahead: batches of a stream that may wait for lanes.
    """

    def __init__(
        self,
        tasks_of: Callable[[list[Item]], list[Task]],
        learn: Callable[[Iterable[Task | None]], Iterator[list[Result]]],
        ahead: int,
    ) -> None:
        self._tasks_of, self._learn, self._ahead = tasks_of, learn, ahead
        self._changed = threading.Condition()
        self._reading = threading.Semaphore(_READ_AT_ONCE)
        self._streams: list[_Stream[Item]] = []  # the first that came first
        self._owners: dict[int, _Stream[Item]] = {}  # by the identity of a task that is in work
        self._thread = threading.Thread(target=self._run, name="lanes", daemon=True)

    def results(self, batches: Iterable[list[Item]]) -> Iterator[list[Result]]:
        """Learn for the images of one stream, in the caller's thread; other threads may call it meanwhile.

        Yields:
            results in lists, in the order in which they are done.

        Raises:
            what reading the batches raises, and what making their tasks or learning raised.
        """
        stream: _Stream[Item] = _Stream()
        with self._changed:
            self._streams.append(stream)
            if self._thread.ident is None:
                self._thread.start()
        try:
            with self._reading:
                for batch in batches:
                    self._offer(stream, batch)
                    if ended := self._take(stream):
                        yield ended
            while ended := self._wait(stream):
                yield ended
        finally:
            with self._changed:
                self._streams.remove(stream)

    def _offer(self, stream: "_Stream[Item]", batch: list[Item]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(stream.batches) < self._ahead or stream.error)
            stream.check()
            stream.batches.append(batch)
            stream.missing += len(batch)
            self._changed.notify_all()

    def _take(self, stream: "_Stream[Item]") -> list[Result]:
        with self._changed:
            ended, stream.ended = stream.ended, []
            return ended

    def _wait(self, stream: "_Stream[Item]") -> list[Result]:
        """Results that are there, or come; empty when all have come."""
        with self._changed:
            self._changed.wait_for(lambda: stream.ended or stream.error or not stream.missing)
            stream.check()
        return self._take(stream)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._ready)
            try:
                for ended in self._learn(self._tasks()):
                    self._deliver(ended)
            except Exception as error:  # to those who wait; the next ones may have more luck
                self._fail(self._streams, error)

    def _tasks(self) -> Iterator[Task | None]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._owners or self._ready())
                stream = self._ready()
                batch = stream.batches.popleft() if stream else []
                self._changed.notify_all()
            if stream is None:
                yield None
                continue
            try:
                tasks = self._tasks_of(batch)
            except Exception as error:
                self._fail([stream], error)
                continue
            self._owners.update((id(task), stream) for task in tasks)
            yield from tasks

    def _ready(self) -> "_Stream[Item] | None":
        return next((stream for stream in self._streams if stream.batches), None)

    def _deliver(self, ended: list[Result]) -> None:
        with self._changed:
            for result in ended:
                stream = self._owners.pop(id(result[0].task))
                stream.ended.append(result)
                stream.missing -= 1
            self._changed.notify_all()

    def _fail(self, streams: "list[_Stream[Item]]", error: Exception) -> None:
        with self._changed:
            if streams is self._streams:
                self._owners.clear()
            for stream in streams:
                stream.error = error
                stream.batches.clear()
            self._changed.notify_all()


class WorkClock:
    """Seconds that each of several shards takes, where a second in which two are in work counts half for each.

    So the seconds of all shards add up to those of the actor, and tell its throughput.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._lock = now, threading.Lock()
        self._in_work, self._each, self._at = 0, 0.0, 0.0

    @contextlib.contextmanager
    def work(self) -> Iterator[Callable[[], float]]:
        """Around the work on one shard; gives a function that tells its seconds so far."""
        start = self._share(+1)
        try:
            yield lambda: self._share() - start
        finally:
            self._share(-1)

    def _share(self, more: int = 0) -> float:
        with self._lock:
            now = self._now()
            if self._in_work:
                self._each += (now - self._at) / self._in_work
            self._at, self._in_work = now, self._in_work + more
            return self._each


class _Stream(Generic[Item]):
    """What one caller offers and gets."""

    def __init__(self) -> None:
        self.batches: deque[list[Item]] = deque()
        self.ended: list[Result] = []
        self.missing = 0
        """images that were offered and have no result yet"""
        self.error: Exception | None = None

    def check(self) -> None:
        if self.error is not None:
            raise self.error
