"""Groups of images as a source: a unit is a partition of the groups, and an item is a group with its mean feature.

out/_groups.json   the number of partitions, and the input files whose images are in the groups; written once

The sums come from an earlier stage, `pipeline/stages/embed.py`, and are added in the order of the input files' names, whatever
the order in which they were written.
"""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pez.errors import UserError
from pipeline.errors import OutputError
from pipeline.folder import OutputFolder
from pipeline.sources.ahead import ahead
from pipeline.sources.base import Item, Unit, UnitError
from pipeline.sources.group_sums import GroupSum, read_sums, run_name
from pipeline.sources.grouping import GroupedSource

_NAME = "_groups.json"
_THREADS = 8  # threads that read sums in advance


@dataclasses.dataclass(frozen=True)
class GroupPlan:
    """How the groups of a job are divided into units."""

    fingerprint: str
    """of the job's settings"""
    groups: int
    """about how many there are"""
    partitions: int
    shards: list[tuple[str, str, int]]
    """(URL, stem, number of runs) of each input file, ordered by URL"""
    without: dict[str, str]
    """input files whose images are missing, and why, by URL"""

    @classmethod
    def read(cls, folder: OutputFolder, fingerprint: str) -> "GroupPlan | None":
        """The plan of an earlier run with these settings; None if there is none.

        Raises:
            UserError: it is damaged or cannot be read.
        """
        values = folder.read_json(_NAME)
        if values is None or values.get("fingerprint") != fingerprint:
            return None
        try:
            return cls(**{**values, "shards": [(url, stem, runs) for url, stem, runs in values["shards"]]})
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(f"{folder.url}/{_NAME} is damaged; remove it and re-run the command") from error

    def units(self) -> list[Unit]:
        """The units, named `groups-00003`, with URLs such as `groups#00003-of-00100`."""
        of = self.partitions
        return [Unit(f"groups#{i:05d}-of-{of:05d}", f"groups-{i:05d}") for i in range(of)]


def write_plan(plan: GroupPlan, folder: OutputFolder) -> None:
    """Record a plan, once.

    Raises:
        OutputError: it cannot be written, or a concurrent run has planned other groups.
    """
    earlier = GroupPlan.read(folder, plan.fingerprint)
    if earlier is None:
        folder.put(_NAME, (json.dumps(dataclasses.asdict(plan), indent=0) + "\n").encode())
    elif earlier != plan:
        raise OutputError(f"another run on {folder.url} has divided its groups differently")


@dataclasses.dataclass(frozen=True)
class GroupSource:
    """The groups of an output folder, with the means of their images' features.

    Args:
        output: URL to open as the folder; it may contain a password.
        fingerprint: of the job's settings.
        images: how the images were read and grouped.
    """

    output: str
    fingerprint: str
    images: GroupedSource

    columns = GroupedSource.columns
    nouns = ("group", "groups of images")

    def read(self, unit: Unit, left_out: Counter[str] | None = None) -> Iterator[Item]:
        """The groups of a partition, ordered by name; see Source. A group without a usable image has the reason of the first.

        Raises:
            UnitError: the plan or sums are missing or cannot be read.
        """
        for index, (group, found) in enumerate(sorted(self._sums(unit).items())):
            bare = Item(index, group, group=group, columns={"group": group, "images": found.images}, size=1)
            if found.vector is None:
                failed = "its only image failed" if found.failed == 1 else f"all its {found.failed} images failed"
                reason = f"{failed}: {found.reason}" if found.failed == 1 else f"{failed}; the first: {found.reason}"
                yield dataclasses.replace(bare, status=found.status or "bad_image", reason=reason)
            else:
                yield dataclasses.replace(bare, direction=found.vector / found.images)

    def size(self, unit: Unit) -> int | None:
        """About how many groups a unit has."""
        return max(1, self._plan.groups // self._plan.partitions)

    def describe(self) -> dict[str, Any]:
        """See Source."""
        return self.images.describe()

    def _sums(self, unit: Unit) -> Mapping[str, GroupSum]:
        partition = int(unit.url.partition("#")[2].partition("-")[0])
        sums: dict[str, GroupSum] = {}
        names = (run_name(stem, run) for _, stem, runs in self._plan.shards for run in range(runs))

        def read(name: str) -> list[tuple[str, GroupSum]]:
            return read_sums(self._folder, name, partition, self._plan.partitions)

        for found in ahead(names, read, _THREADS, 2 * _THREADS):
            for group, added in found:
                sums.setdefault(group, GroupSum()).add(added)
        return sums

    @functools.cached_property
    def _folder(self) -> OutputFolder:
        return OutputFolder(self.output)

    @functools.cached_property
    def _plan(self) -> GroupPlan:
        plan = GroupPlan.read(self._folder, self.fingerprint)
        if plan is None:
            raise UnitError(f"there is no {_NAME} of this job in {self._folder.url}; re-run the command")
        return plan
