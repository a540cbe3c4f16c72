"""Identify the process that works on an output, and check whether it is still alive."""

import os
import socket
from typing import Any


def this_process() -> dict[str, Any]:
    """Identify this process among all processes of this machine."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_at_work(process: Any) -> bool:
    """True if another process of this machine, identified by `this_process`, is alive."""
    if not isinstance(process, dict) or process.get("host") != socket.gethostname():
        return False
    pid = process.get("pid")
    return isinstance(pid, int) and pid != os.getpid() and _started(pid) == process.get("started") is not None


def _started(pid: int) -> str | None:
    """When a process started, in ticks since boot; None if there is no such process or no /proc."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
