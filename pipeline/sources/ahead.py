"""Work done in advance, in threads, through a bounded queue, in order."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_END = object()


def ahead(items: Iterable[Item], work: Callable[[Item], Result], threads: int, limit: int) -> Iterator[Result]:
    """Read `items` in a thread and do `work` on them in others, at most `limit` ahead of the consumer.

    Only a few items wait for their work at any time, because they may be much larger than the results.

    Yields:
        results in the order of the items. Errors of reading or work are raised here, at their place in the order.
    """
    results: queue.Queue[object] = queue.Queue(maxsize=limit)
    stopped = threading.Event()
    room = threading.Semaphore(2 * threads)

    def put(value: object) -> None:
        while not stopped.is_set():
            try:
                results.put(value, timeout=0.1)
                return
            except queue.Full:
                continue

    def read(pool: ThreadPoolExecutor) -> None:
        try:
            for item in items:
                while not room.acquire(timeout=0.1):
                    if stopped.is_set():
                        return
                future = pool.submit(work, item)
                future.add_done_callback(lambda _: room.release())
                put(future)
                if stopped.is_set():
                    return
        except BaseException as error:
            put(error)
        put(_END)

    with ThreadPoolExecutor(threads) as pool:
        reader = threading.Thread(target=read, args=(pool,), daemon=True)
        reader.start()
        try:
            while (value := results.get()) is not _END:
                if isinstance(value, BaseException):
                    raise value
                assert isinstance(value, Future)
                yield value.result()
        finally:
            stopped.set()
            reader.join(timeout=5)  # a hanging read of a remote store must not delay an interrupt
            pool.shutdown(wait=True, cancel_futures=True)


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
