"""Workers and learners that do next to nothing: what remains is the pipeline's own cost. Ray's workers import them."""

from collections.abc import Iterable, Iterator
from typing import Any

from pez.images import decode_image
from pipeline.rows import Row, ShardReport
from pipeline.run.tasks import Task
from pipeline.settings import CaptionSettings
from pipeline.sources.base import Item, Unit
from pipeline.sources.choice import source_of
from pipeline.stages.learn import Learner, Progress
from pipeline.stages.work_clock import WorkClock
from pipeline.table import PromptTable


class TrivialStage:
    """In the place of LearnStage: writes one row a unit and reads nothing; all else is the real table."""

    name = "learning"

    def __init__(self, _: Any, __: Any, url: str, described: dict[str, Any], ___: bool, ____: Any) -> None:
        self.url, self.described = url, described

    def open(self, device: str, threads: int) -> "TrivialWorker":
        return TrivialWorker(PromptTable(self.url, self.described))


class TrivialWorker:
    progress = Progress()

    def __init__(self, table: PromptTable) -> None:
        self.table = table

    def run(self, task: Task) -> ShardReport:
        unit = task.unit
        if report := self.table.finished(unit):
            return report
        return self.table.publish(unit, [Row("key", unit.url, "ok", prompt="a cat", similarity=0.5)], 0.01)


class SizeLearner(Learner):
    """Decodes every image and says how large it is; has no model."""

    def __init__(self, settings: CaptionSettings) -> None:
        self.caption_weight = 0.0
        self.settings = settings
        self.source = source_of(settings)
        self.clock = WorkClock()
        self.opening: list[str] = []

    def learn(self, unit: Unit, items: Iterable[Item], parts: int = 1) -> Iterator[tuple[int, Row]]:
        for item in items:
            assert item.image is not None
            image = decode_image(item.image)
            yield item.index, Row(item.key, unit.url, "ok", width=image.width, height=image.height)
