"""Load models without the log messages and progress bars of the libraries involved.

Logging is not disabled for the process. A filter drops the records of the loading thread only, so that concurrent loads and
the user's own use of these libraries do not interfere.
"""

import contextlib
import importlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

_WITH_BARS = ("diffusers", "transformers")
_TALKATIVE = (*_WITH_BARS, "huggingface_hub")

_here = threading.local()
_lock = threading.Lock()
_loading = 0
_switched: list[tuple[Any, bool]] = []
"""libraries whose bars are off now but were on before, and whether the hub's bars were off then"""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what these libraries log in this thread, and disable their progress bars.

    Bars can only be disabled for the whole process: they are off until the last concurrent load is done, then restored.
    """
    _here.depth = getattr(_here, "depth", 0) + 1
    _begin()
    try:
        yield
    finally:
        _end()
        _here.depth -= 1


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
    """Drop what this thread logs through the root logger, as open_clip does; its errors are also raised as exceptions.

    Each use adds and removes its own filter, so threads may overlap in any order and other threads' records are unaffected.
    The first `logging.info` installs a handler on a root logger that has none; the stand-in handler prevents that.
    """
    thread = threading.get_ident()

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno > logging.ERROR

    root, stand_in = logging.getLogger(), _StandIn()
    root.addHandler(stand_in)
    root.addFilter(of_others)
    try:
        yield
    finally:
        root.removeFilter(of_others)
        root.removeHandler(stand_in)


def _begin() -> None:
    from huggingface_hub.utils import are_progress_bars_disabled

    global _loading
    with _lock:
        _loading += 1
        libraries: list[Any] = [importlib.import_module(f"{name}.utils.logging") for name in _WITH_BARS]
        for name in _TALKATIVE:
            for handler in logging.getLogger(name).handlers:
                if _of_others not in handler.filters:
                    handler.addFilter(_of_others)
        for library in libraries:
            if library.is_progress_bar_enabled():
                _switched.append((library, are_progress_bars_disabled()))
                library.disable_progress_bar()  # transformers also switches the hub's bars


def _end() -> None:
    from huggingface_hub.utils import disable_progress_bars

    global _loading
    with _lock:
        _loading -= 1
        while not _loading and _switched:
            library, hub_was_off = _switched.pop()
            library.enable_progress_bar()
            if hub_was_off:
                disable_progress_bars()


def _of_others(record: logging.LogRecord) -> bool:
    """Keep records of threads that are not loading, and anything more severe than an error."""
    return not getattr(_here, "depth", 0) or record.levelno > logging.ERROR


class _StandIn(logging.Handler):
    """Does what Python does with a record that has no handler."""

    def emit(self, record: logging.LogRecord) -> None:
        handlers, logger = [], logging.getLogger(record.name)
        while logger is not None:
            handlers += logger.handlers
            logger = logger.parent if logger.propagate else None  # type: ignore[assignment]
        last = logging.lastResort
        only = handlers[0] is self and all(isinstance(handler, _StandIn) for handler in handlers)
        if only and last and record.levelno >= last.level:
            last.handle(record)
