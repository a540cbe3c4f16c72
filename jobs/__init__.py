"""The commands."""

import os
import signal
import sys
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, see pez/__init__.py


def abandon(*_: Any) -> None:
    """Answer Ctrl-C while modules are imported: at once, for some of them swallow the exception or end in one of their own."""
    if sys.stdout is not None and sys.stdout.isatty():
        os.write(1, b"\r\x1b[2K\x1b[?25h")  # the line of a spinner, and the cursor that it hides
    os.write(2, b"interrupted\n")
    os._exit(130)


# Python is about to run a command. What it imports for that takes a moment, in which nothing else answers Ctrl-C.
if os.path.basename(sys.argv[0]) in ("-m", "pez") and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, abandon)
