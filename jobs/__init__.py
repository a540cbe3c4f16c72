"""The commands."""

import os
import signal
import sys
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, see pez/__init__.py


def abandon(*_: Any) -> None:
    """Exit at once on Ctrl-C during imports: some modules swallow the exception or raise one of their own."""
    if sys.stdout is not None and sys.stdout.isatty():
        os.write(1, b"\r\x1b[2K\x1b[?25h")  # erase the spinner's line and show the cursor again
    os.write(2, b"interrupted\n")
    os._exit(130)


# Python is about to run a command. Imports take a moment, and nothing else handles Ctrl-C meanwhile.
if os.path.basename(sys.argv[0]) in ("-m", "pez") and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, abandon)
