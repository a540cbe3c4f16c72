"""Keep a library's log to itself while one thread calls it, and nothing else changed."""

import contextlib
import logging
import threading
from collections.abc import Iterator


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
