"""The failure log: out/_failures/<stem>.txt has each failed attempt of a unit with its traceback."""

import contextlib
import datetime
from collections.abc import Mapping, Sequence

from pipeline.errors import OutputError
from pipeline.folder import OutputFolder
from pipeline.run.tasks import Task
from pipeline.sources.base import Unit
from pipeline.urls import redact

_LONGEST = 100_000  # characters per file


class FailureLog:
    """The files of `_failures` in an output folder.

    Args:
        folder: the output.
    """

    def __init__(self, folder: OutputFolder) -> None:
        self.folder = folder
        self._texts: dict[str, str] = {}
        self._written: set[str] = set()

    def record(self, task: Task, reason: str, trace: str = "") -> None:
        """Log a failed attempt.

        Args:
            reason: one line.
            trace: the traceback; empty if nothing was raised, as for a lost actor.
        """
        unit = task.unit
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        text = redact(f"{now} {unit.url}{task.detail}: {reason}\n{trace.rstrip()}\n\n", unit.source)
        self._texts[unit.stem] = (self._texts.get(unit.stem, "") + text)[-_LONGEST:]
        with contextlib.suppress(OutputError):  # the reason is printed in any case
            self.folder.put(_name(unit.stem), self._texts[unit.stem].encode("utf-8", "backslashreplace"))
            self._written.add(unit.stem)

    def located(self, failed: Mapping[str, str], units: Sequence[Unit]) -> dict[str, str]:
        """The reasons by URL, each with a pointer to its log file."""
        stems = {unit.url: unit.stem for unit in units}
        return {
            url: f"{reason}; see {_name(stems[url])}" if stems.get(url) in self._written else reason
            for url, reason in failed.items()
        }

    def conclude(self, failed: Mapping[str, str], units: Sequence[Unit]) -> None:
        """Remove the logs of units that are done."""
        if not (there := self.folder.names("_failures", ".txt")):
            return
        for unit in units:
            if unit.stem in there and unit.url not in failed:
                self.folder.remove(_name(unit.stem))
        if not failed:
            self.folder.remove("_failures")


def _name(stem: str) -> str:
    return f"_failures/{stem}.txt"
