"""The commands."""

import os
import sys
from types import TracebackType

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, see pez/__init__.py

_others = sys.excepthook


def _interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C before a command is there to answer it, while Python still imports."""
    if not issubclass(kind, KeyboardInterrupt):
        _others(kind, error, trace)
        return
    os.write(2, b"interrupted\n")
    os._exit(130)


sys.excepthook = _interrupted
