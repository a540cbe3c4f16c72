"""Lanes in parts, each in a thread of its own, on a CPU.

Several threads in every operation meet after each of some thousand operations of a step. Asleep between them (`OMP_WAIT_POLICY`
is passive, see `pez/__init__.py`), they lose a third of the time; spinning, they lose most of it on a busy machine. Lanes are
independent, so a thread can take some of them through all operations alone (figures in EXPERIMENTS.md).
"""

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch
from torch import Tensor

from pez.modes import own_modes

T = TypeVar("T")

_LANES = 16  # of a part at least; results are bitwise the same for any multiple of 16 in fp32
_WIDTH = 256  # of soft tokens at least: a step of a small model is mostly Python, whose lock the threads would share


def parts_of(soft: Tensor) -> list[slice]:
    """Parts of the lanes of (lanes, ..., width) soft prompts: as many as PyTorch has threads, if that is worthwhile."""
    lanes, count = len(soft), torch.get_num_threads()
    if soft.device.type != "cpu" or soft.shape[-1] < _WIDTH:
        return [slice(0, lanes)]
    units = -(-lanes // _LANES)
    size = -(-units // min(count, units)) * _LANES
    return [slice(first, min(first + size, lanes)) for first in range(0, lanes, size)]


def in_threads(compute: Callable[[slice], T], parts: Sequence[slice]) -> list[T]:
    """`compute` of each part, side by side; the threads of PyTorch are shared between them.

    Raises:
        Whatever a part raises; the others end first.
    """
    global _count
    if len(parts) == 1:
        return [compute(parts[0])]
    with _alone:
        _count, gradients = torch.get_num_threads(), torch.is_grad_enabled()
        each = max(1, round(_count / len(parts)))

        def of(part: slice) -> T:
            torch.set_num_threads(each)  # of this thread; of MKL in all threads, and of threads that begin now
            with own_modes(gradients):
                return compute(part)

        running: list[Future[T]] = []
        try:
            running += (_pool(len(parts)).submit(of, part) for part in parts)
            wait(running)
        finally:
            for one in running:
                one.cancel()
            wait(running)
            torch.set_num_threads(_count)
            _count = None
    return [one.result() for one in running]


def begin_thread() -> None:
    """Give a new thread as many threads of PyTorch as the process has, even if parts are being computed just now."""
    if (count := _count) is not None:
        torch.set_num_threads(count)


_count: int | None = None
"""threads of the caller while parts are computed"""
_alone = threading.Lock()


@functools.cache
def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="lanes")


def _after_fork() -> None:
    global _alone, _count
    _alone, _count = threading.Lock(), None
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):  # a forked process has no threads of its parent
    os.register_at_fork(after_in_child=_after_fork)
