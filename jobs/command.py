"""What every command line shares: options from dataclasses, one-line errors, exit status."""

import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import tyro

from pipeline.progress import plain
from pipeline.shards import InputError
from pipeline.table import OutputError

Options = TypeVar("Options")


def run(options: type[Options], description: str | None, job: Callable[[Options], int]) -> None:
    """Read the command line into `options` and run the job.

    Exit status: the job's own, 2 for bad usage or settings, 130 when interrupted: by Ctrl-C, or by SIGTERM, which is what
    `ray job stop` and a spot machine's notice send.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    try:
        chosen = tyro.cli(options, description=description, config=config)
        status = job(chosen)
    except (InputError, ValueError) as error:
        print(f"error: {plain(str(error))}", file=sys.stderr)
        status = 2
    except OutputError as error:  # the output has become full or unwritable
        print(f"failed: {plain(str(error))}; run the same command to go on", file=sys.stderr)
        status = 1
    except KeyboardInterrupt as error:
        print(f"interrupted: {error}" if str(error) else "interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
