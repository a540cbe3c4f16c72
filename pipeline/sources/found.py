"""The units found in a job's input."""

import dataclasses
from typing import Any

from pipeline.folder import OutputFolder
from pipeline.sources.base import Unit
from pipeline.sources.folders import ImageList, record


@dataclasses.dataclass(frozen=True)
class Found:
    """The units of an input, and what was detected from its files."""

    units: list[Unit]
    settings: Any = None
    """settings of the job, completed by what was detected; None = unchanged"""
    lists: tuple[ImageList, ...] = ()
    """lists of new units of folders, to record before any work"""
    notes: tuple[str, ...] = ()
    """lines to print"""

    def record(self, output: OutputFolder) -> None:
        """Record the lists of files of the units.

        Raises:
            OutputError: they cannot be written.
        """
        record(self.lists, output)
