"""A source of its own, as a user might write it: numbers from text files, one a line."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.sources.base import Item, Unit, UnitError


@dataclasses.dataclass(frozen=True)
class NumberSource:
    """A prompt for each number, learned from the number as text; the number itself is a column of the output."""

    fails_once: str = ""
    """folder in which each unit leaves a mark when it is first read, and fails"""

    nouns = ("number", "one number a line")
    columns = (pa.field("number", pa.int64()),)

    def read(self, unit: Unit, left_out: Counter[str] | None = None) -> Iterator[Item]:
        mark = Path(self.fails_once, unit.stem)
        if self.fails_once and not mark.exists():
            mark.touch()
            raise UnitError(f"{unit.url} is out of reach")
        for index, line in enumerate(Path(unit.source).read_text().splitlines()):
            found = Item(index, f"{unit.stem}-{index}", text=line, size=1)
            if line.isdecimal():
                yield dataclasses.replace(found, columns={"number": int(line)})
            else:
                yield dataclasses.replace(
                    found, text=None, status="no_number", reason=f"found {line!r}; expected a number"
                )

    def size(self, unit: Unit) -> int | None:
        return None

    def describe(self) -> dict[str, Any]:
        return {"kind": "numbers"}
