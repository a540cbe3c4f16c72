"""The stage that embeds the images of a unit and adds them up by group."""

import dataclasses
from typing import Any

from pipeline.member_table import EmbedReport, MemberTable
from pipeline.run.tasks import Task
from pipeline.settings import LearnSettings
from pipeline.sources.grouping import GroupedSource
from pipeline.stages.embed import Embedder, embed_unit
from pipeline.stages.learn import Progress
from pipeline.table import PromptTable


@dataclasses.dataclass(frozen=True)
class EmbedStage:
    """Embed the images of units into an output folder.

    Args:
        source: how to read and group the images.
        output: URL to open as the folder; it may contain a password.
        described: see `pipeline/description.py`.
    """

    settings: LearnSettings
    source: GroupedSource
    output: str
    described: dict[str, Any]
    name: str = "embedding"

    def open(self, device: str, threads: int) -> "EmbedWorker":
        """Load the CLIP."""
        table = MemberTable(PromptTable(self.output, self.described, columns=self.source.columns))
        return EmbedWorker(Embedder(self.settings, self.source, device, threads), table)


class EmbedWorker:
    """A CLIP, and the folder for the sums of its features."""

    def __init__(self, embedder: Embedder, table: MemberTable) -> None:
        self.embedder, self.table = embedder, table

    @property
    def progress(self) -> Progress:
        return self.embedder.progress

    def run(self, task: Task) -> EmbedReport:
        return embed_unit(task.unit, self.embedder, self.table)
