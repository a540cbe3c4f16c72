"""Which parts of which units are still to be done."""

import dataclasses
from collections import Counter

from pipeline.sources.base import Unit


class PartsLeft:
    """Counts the parts that are done, and tells when a shard's last one is."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()

    def whole_after(self, part: Unit) -> Unit | None:
        """The shard, to be merged, where the part that has just been done was its last."""
        self.done[part.url] += 1
        if self.done[part.url] < part.parts:
            return None
        del self.done[part.url]
        return dataclasses.replace(part, part=None)
