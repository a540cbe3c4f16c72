"""Warnings of this process: shown as they come, and recorded for the reports of the units that are in work."""

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

_lock = threading.Lock()
_recordings: list[list[str]] = []


def install(show: Callable[[str], None] = lambda _: None) -> None:
    """Have every warning of this process recorded.

    Args:
        show: called with each, as one line.
    """

    def take(message: Warning | str, *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        with _lock:
            for found in _recordings:
                if text not in found:
                    found.append(text)
        show(text)

    warnings.showwarning = take
    # By default a text is shown once a place; the second unit that it concerns would not learn of it.
    for module in ("pez", "pipeline"):
        warnings.filterwarnings("always", category=UserWarning, module=rf"{module}\b")


@contextlib.contextmanager
def recording() -> Iterator[list[str]]:
    """Around the work on a unit, or the opening of a worker; gives the list that the warnings of that time are added to.

    Where several units are in work at once, each has the warnings of all: they share a model and its memory.
    """
    found: list[str] = []
    with _lock:
        _recordings.append(found)
    try:
        yield found
    finally:
        with _lock:
            _recordings[:] = [one for one in _recordings if one is not found]
