"""Seconds per unit of work, for a worker that processes several concurrently."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


class WorkClock:
    """Seconds that each of several units takes. A second in which two are processed counts half for each.

    So the seconds of all units add up to those of the worker, and give its throughput.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._lock = now, threading.Lock()
        self._in_work, self._each, self._at = 0, 0.0, 0.0

    @contextlib.contextmanager
    def work(self) -> Iterator[Callable[[], float]]:
        """Measure the work on one unit; yields a function that returns its seconds so far."""
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
