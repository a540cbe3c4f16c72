"""The stage that learns a prompt for every item of a unit."""

import dataclasses
from typing import Any

import pez
from pipeline.rows import ShardReport
from pipeline.run.tasks import Merge, Part, Task
from pipeline.settings import LearnSettings
from pipeline.sources.base import Source
from pipeline.stages.learn import Learner, Progress, learn_part, learn_unit
from pipeline.stages.learned_columns import learned_columns
from pipeline.stages.parts import PartReport, merge_parts
from pipeline.table import PromptTable


@dataclasses.dataclass(frozen=True)
class LearnStage:
    """Learn prompts for units into an output folder.

    Args:
        output: URL to open as the folder; it may contain a password.
        described: see `pipeline/description.py`.
        retry_failed: redo the failed rows of finished units.
        source: how to read units; default = according to the settings.
    """

    settings: LearnSettings
    method: pez.PezSettings
    output: str
    described: dict[str, Any]
    retry_failed: bool = False
    source: Source | None = None
    name: str = "learning"

    def open(self, device: str, threads: int) -> "LearnWorker":
        """Load the CLIP."""
        learner = Learner(self.settings, self.method, device, threads, self.source)
        columns = [*learner.source.columns, *learned_columns(self.settings, self.method)]
        table = PromptTable(self.output, self.described, columns=columns)
        return LearnWorker(learner, table, self.retry_failed)


class LearnWorker:
    """A learner, and the folder for its prompts."""

    def __init__(self, learner: Learner, table: PromptTable, retry_failed: bool = False) -> None:
        self.learner, self.table, self.retry_failed = learner, table, retry_failed

    @property
    def progress(self) -> Progress:
        return self.learner.progress

    def run(self, task: Task) -> ShardReport | PartReport:
        if isinstance(task, Part):
            return learn_part(task, self.learner, self.table)
        if isinstance(task, Merge) and not self.table.finished(task.unit):
            return merge_parts(task, self.table)
        return learn_unit(task.unit, self.learner, self.table, self.retry_failed)
