"""A job in a process of its own, for tests that kill it or what it started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


class RunningJob:
    """`python -m jobs.caption` in a session of its own; what it prints goes to a file.

    Args:
        words: of the command line.
        log: file for its output.
    """

    def __init__(self, *words: object, log: Path, env: dict[str, str] | None = None) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jobs.caption", *map(str, words)],
                cwd=ROOT,
                env={**os.environ, **(env or {})},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # A test run in the background ignores Ctrl-C, and its children would.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def __enter__(self) -> "RunningJob":
        return self

    def __exit__(self, *_: object) -> None:
        started = self.started()
        self.process.kill()
        self.process.wait()
        for process in psutil.wait_procs(started, timeout=30)[1]:
            process.kill()

    def started(self) -> list[psutil.Process]:
        """The processes that the job has started."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def actors(self) -> list[psutil.Process]:
        """Those of them that are actors of a stage."""
        return [p for p in self.started() if _command(p).startswith("ray::WorkerActor")]

    def wait(self, seconds: float = 300.0) -> int:
        return self.process.wait(seconds)

    def wait_until(self, condition: Callable[[], object], seconds: float = 300.0) -> None:
        """Wait while the job runs."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"it ended too early:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"not after {seconds} s:\n{self.log.read_text()}"
            time.sleep(0.05)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
