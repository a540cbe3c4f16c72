"""A source of images that gives each image its group."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pez.errors import UserError
from pipeline.sources.base import Item, LateField, Source, Unit
from pipeline.sources.folders import FolderSource
from pipeline.sources.group_by import GroupBy
from pipeline.sources.image_tables import ImageTableSource
from pipeline.sources.tars import TarSource


@dataclasses.dataclass(frozen=True)
class GroupedSource:
    """A source of images whose items have a group, or the reason why they have none.

    Args:
        groups_per_unit: about how many groups a unit of group prompts has.
    """

    source: Source
    by: GroupBy
    groups_per_unit: int = 1000

    columns = (pa.field("group", pa.string()), pa.field("images", pa.int32()))

    @property
    def nouns(self) -> tuple[str, str]:
        """See Source."""
        return self.source.nouns

    def read(self, unit: Unit, left_out: Counter[str]) -> Iterator[Item]:
        """The items of a unit, see Source. LateFields give the groups of items that were yielded without one."""
        for item in self.source.read(unit, left_out):
            group, reason = self.by.group_of(item)
            if isinstance(item, LateField) or type(item) is Item:
                yield dataclasses.replace(item, group=group, no_group=reason)

    def size(self, unit: Unit) -> int | None:
        """See Source."""
        return self.source.size(unit)

    def describe(self) -> dict[str, Any]:
        """See Source."""
        described = {"kind": "groups", "group_by": str(self.by), "of": self.source.describe()}
        return described if self.groups_per_unit == 1000 else {**described, "groups_per_unit": self.groups_per_unit}


def grouped(source: Source, by: GroupBy, groups_per_unit: int = 1000) -> GroupedSource:
    """A source of images, whose items then have groups.

    Raises:
        UserError: images of this source have no such thing as a folder, JSON or columns.
    """
    if isinstance(source, ImageTableSource):
        if by.kind == "column":
            source = dataclasses.replace(source, group_column=by.argument)
        elif by.kind != "key":
            raise UserError(f"--group-by is {by}, and the input is a table; expected column:NAME or key:REGEX")
    elif by.kind == "column":
        raise UserError(f"--group-by is {by}, and the input is not a table; expected folder, key:REGEX or json:FIELD")
    elif by.kind == "json":
        assert isinstance(source, TarSource | FolderSource), "the sources of images"
        source = dataclasses.replace(source, group_field=by.argument)
    return GroupedSource(source, by, groups_per_unit)
