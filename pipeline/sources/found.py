"""What a job's input turned out to be."""

import dataclasses
from typing import Any

from pipeline.folder import OutputFolder
from pipeline.sources.base import Unit
from pipeline.sources.folders import ImageList, record


@dataclasses.dataclass(frozen=True)
class Found:
    """The units of an input, and what was told from its files."""

    units: list[Unit]
    settings: Any = None
    """of the job, with what was not given and the input decides; None = as they are"""
    lists: tuple[ImageList, ...] = ()
    """of new units of folders, which are to be recorded before any work"""
    notes: tuple[str, ...] = ()
    """a line each, for people"""

    def record(self, output: OutputFolder) -> None:
        """Write down what the units need.

        Raises:
            OutputError: the folder does not take it.
        """
        record(self.lists, output)
