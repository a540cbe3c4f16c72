"""Shared by every command: parsing options, one-line errors and warnings, exit status."""

import contextlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pez
from jobs import abandon, arguments
from pez.errors import UserError
from pipeline.errors import OutputError
from pipeline.run import warning_log
from pipeline.terminal import forget_warnings, harden_output, plain, warn

Options = TypeVar("Options")


def run(
    options: type[Options], description: str | None, job: Callable[[Options], int], prog: str | None = None
) -> None:
    """Read the command line into `options`, run the job and exit.

    Args:
        prog: what the user typed, such as `pez caption`; default = the module that Python runs.

    Exit status: the job's own, 2 for bad usage or settings, 130 when interrupted by Ctrl-C or SIGTERM, which
    `ray job stop` and the notice of a spot instance send.
    """
    end(lambda: job(arguments.read(options, description, prog or prog_of(sys.argv[0]), sys.argv[1:])))


def end(work: Callable[[], int]) -> None:
    """Run a command and exit with its status."""
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is abandon:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    harden_output()
    forget_warnings()
    warning_log.install(warn)
    try:
        status = work()
    except OutputError as error:  # the output is full or not writable
        print(f"failed: {plain(str(error))}; re-run the command to resume", file=sys.stderr)
        status = 1
    except UserError as error:
        print(f"error: {plain(str(error))}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt as error:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, abandon)  # a second Ctrl-C does not wait for Ray to shut down
        print(f"interrupted: {plain(str(error))}" if str(error) else "interrupted", file=sys.stderr)
        status = 130
    except Exception:
        traceback.print_exc()
        print(
            f"this is a bug in pez {pez.__version__}: please report it with the lines above",
            file=sys.stderr,
        )
        status = 1
    sys.exit(status)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Wrap the import of large modules, before any work: Ctrl-C exits at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    for number, _ in before:
        signal.signal(number, abandon)
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def prog_of(path: str) -> str:
    """The command line that runs a module."""
    if not path.endswith(".py"):
        return path
    file = Path(path)
    return f"python -m jobs.{file.parent.name if file.stem == '__main__' else file.stem}"


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
