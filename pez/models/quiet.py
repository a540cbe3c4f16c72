"""Loading models without the words and bars of the libraries that load them.

Nothing is switched off for the process: records are dropped by a filter that looks at the thread, so that loads in several
threads, and the user's own use of these libraries beside them, do not disturb each other.
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
"""of the libraries, those whose bars are off now and were on before, and whether the hub's were off then"""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what these libraries log in this thread, and let them draw no bars.

    They know bars for the whole process only: these are off until the last load that runs is done, and then as before.
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
    """Pass over what this thread logs by the root logger, as open_clip does; its errors are raised as well.

    Each use adds its own filter and takes it away, so several threads may come and go in any order, and what others log is as
    it was. The first call of `logging.info` gives a root logger without handlers one for good: a stand-in keeps it from that.
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
                library.disable_progress_bar()  # transformers' switches the hub's too


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
    """A filter that keeps what is logged by threads that load nothing, and what is worse than an error."""
    return not getattr(_here, "depth", 0) or record.levelno > logging.ERROR


class _StandIn(logging.Handler):
    """Does what Python does with a record that no handler is there for."""

    def emit(self, record: logging.LogRecord) -> None:
        handlers, logger = [], logging.getLogger(record.name)
        while logger is not None:
            handlers += logger.handlers
            logger = logger.parent if logger.propagate else None  # type: ignore[assignment]
        last = logging.lastResort
        only = handlers[0] is self and all(isinstance(handler, _StandIn) for handler in handlers)
        if only and last and record.levelno >= last.level:
            last.handle(record)
