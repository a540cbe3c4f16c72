"""Actors and captioners that do next to nothing: what remains is the pipeline's own cost. Ray's workers import them."""

from collections.abc import Iterable, Iterator
from typing import Any

import ray

from pez.images import decode_image
from pipeline.rows import Row, ShardReport
from pipeline.settings import CaptionSettings
from pipeline.sources.base import Item as Sample
from pipeline.sources.choice import source_of
from pipeline.sources.shards import Shard
from pipeline.stages.learn import Captioner, Progress
from pipeline.stages.work_clock import WorkClock
from pipeline.table import PromptTable


@ray.remote
class TrivialActor:
    """Writes one row a shard and reads nothing; all else is the real table."""

    def __init__(self, url: str, described: dict[str, Any]) -> None:
        self.table = PromptTable(url, described)

    def ready(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def run(self, shard: Shard) -> ShardReport:
        if report := self.table.finished(shard):
            return report
        return self.table.publish(shard, [Row("key", shard.url, "ok", prompt="a cat", similarity=0.5)], 0.01)

    def progress(self) -> Progress:
        return Progress()


class SizeCaptioner(Captioner):
    """Decodes every image and says how large it is; has no model."""

    def __init__(self, settings: CaptionSettings) -> None:
        self.settings = settings
        self.source = source_of(settings)
        self.clock = WorkClock()

    def caption(self, shard: Shard, samples: Iterable[Sample]) -> Iterator[tuple[int, Row]]:
        for sample in samples:
            assert sample.image is not None
            image = decode_image(sample.image)
            yield sample.index, Row(sample.key, shard.url, "ok", width=image.width, height=image.height)
