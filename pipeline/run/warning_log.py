"""Warnings of this process: shown immediately, and recorded for the reports of the current units."""

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

_lock = threading.Lock()
_recordings: list[list[str]] = []


def install(show: Callable[[str], None] = lambda _: None) -> None:
    """Record every warning of this process from now on.

    Args:
        show: called with each warning, as one line.
    """

    def take(message: Warning | str, *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        with _lock:
            for found in _recordings:
                if text not in found:
                    found.append(text)
        show(text)

    warnings.showwarning = take
    # By default a warning is shown once per place in the code, so it would be missing from the reports of further units.
    for module in ("pez", "pipeline"):
        warnings.filterwarnings("always", category=UserWarning, module=rf"{module}\b")


@contextlib.contextmanager
def recording() -> Iterator[list[str]]:
    """Record warnings during the work on a unit, or while a worker opens; yields the list that they are added to.

    If several units are processed concurrently, each has the warnings of all, because they share a model and its memory.
    """
    found: list[str] = []
    with _lock:
        _recordings.append(found)
    try:
        yield found
    finally:
        with _lock:
            _recordings[:] = [one for one in _recordings if one is not found]
