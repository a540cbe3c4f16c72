"""Which group an image belongs to: by its folder, a part of its key, a field of its JSON, or a column of its table."""

import dataclasses
import re
from typing import Any, Literal, get_args

from pez.errors import UserError
from pipeline.sources.base import Item
from pipeline.sources.table_rows import BadValue, kind_of_value

Kind = Literal["folder", "key", "json", "column"]

_LONGEST = 4096  # characters of a group's name
_EXPECTED = "expected folder, key:REGEX, json:FIELD or column:NAME"
_MISSING = {
    "key": "expected key:REGEX, such as 'key:^([^_]+)_'",
    "json": "expected json:FIELD, such as json:artist",
    "column": "expected column:NAME, such as column:artist",
}


@dataclasses.dataclass(frozen=True)
class GroupBy:
    """How to find the group of an image.

    Args:
        kind: folder = the part of the key before the last `/`; key = a part of the key; json = a field of the JSON beside the
            image; column = a column of the table.
        argument: the regular expression, field or column; empty for folders. Of an expression, the group is what its
            parentheses match, or the whole match if it has none.
    """

    kind: Kind
    argument: str = ""

    @classmethod
    def parse(cls, text: str) -> "GroupBy":
        """Parse the option: `folder`, `key:REGEX`, `json:FIELD` or `column:NAME`.

        Raises:
            UserError: an unknown kind, no argument, or an invalid regular expression.
        """
        name, colon, argument = text.partition(":")
        kind: Kind | None = next((one for one in get_args(Kind) if one == name), None)
        if kind is None or (kind == "folder" and colon):
            raise UserError(f"--group-by is {text!r}; {_EXPECTED}")
        if kind != "folder" and not argument.strip():
            raise UserError(f"--group-by is {text!r}, which names nothing; {_MISSING[kind]}")
        if kind == "key":
            try:
                groups = re.compile(argument).groups
            except (re.error, OverflowError, RecursionError) as error:
                raise UserError(f"--group-by is {text!r}: {error}; expected a regular expression") from error
            if groups > 1:
                raise UserError(f"--group-by is {text!r}, with {groups} pairs of parentheses; expected one, or (?:...)")
        return cls(kind, argument)

    def __str__(self) -> str:
        return f"{self.kind}:{self.argument}" if self.argument else self.kind

    def group_of(self, item: Item) -> tuple[str | None, str | None]:
        """(group, None) of an item, or (None, why it has none)."""
        if self.kind == "folder":
            return _named(item.key.rpartition("/")[0], "no group: its key has no folder")
        if self.kind == "key":
            match = re.search(self.argument, item.key)
            if match is None:
                return None, f"no group: its key does not match {self.argument!r}"
            found = match[match.re.groups]
            return _named(found or "", f"no group: {self.argument!r} matches nothing in its key")
        what = f"its {'field' if self.kind == 'json' else 'column'} {self.argument!r}"
        return _named_by_value(item.field, what)


def _named_by_value(value: Any, what: str) -> tuple[str | None, str | None]:
    if value is None:
        return None, f"no group: {what} is missing or null"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value), None
    if isinstance(value, BadValue):
        return None, f"no group: {value.what}"
    if not isinstance(value, str):
        return None, f"no group: {what} holds {kind_of_value(value)}; expected a text or an integer"
    return _named(value, f"no group: {what} is empty")


def _named(group: str, reason: str) -> tuple[str | None, str | None]:
    if not group.strip():
        return None, reason
    if len(group) > _LONGEST:
        return None, f"no group: its name has {len(group)} characters; expected at most {_LONGEST}"
    return group, None
