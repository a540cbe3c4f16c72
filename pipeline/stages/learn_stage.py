"""The stage that learns a prompt for every item of a unit."""

import dataclasses
from typing import Any

import pez
from pipeline.rows import ShardReport
from pipeline.settings import LearnSettings
from pipeline.sources.base import Source, Unit
from pipeline.stages.learn import Captioner, Progress, caption_shard
from pipeline.stages.parts import PartReport
from pipeline.table import PromptTable


@dataclasses.dataclass(frozen=True)
class LearnStage:
    """Learn prompts for units into an output folder.

    Args:
        output: what is opened as the folder; it may hold a password.
        described: see `pipeline/description.py`.
        retry_failed: of finished units, learn the failed rows again.
        source: how units are read; default = as the settings say.
    """

    settings: LearnSettings
    method: pez.PezSettings
    output: str
    described: dict[str, Any]
    retry_failed: bool = False
    source: Source | None = None
    name: str = "captions"

    def open(self, device: str, threads: int) -> "LearnWorker":
        """Load the CLIP."""
        return LearnWorker(self, Captioner(self.settings, self.method, device, threads, source=self.source))


class LearnWorker:
    """A CLIP, and the folder that its prompts go to."""

    def __init__(self, stage: LearnStage, captioner: Captioner) -> None:
        self.captioner, self.retry_failed = captioner, stage.retry_failed
        self.table = PromptTable(stage.output, stage.described, columns=captioner.source.columns)

    @property
    def progress(self) -> Progress:
        return self.captioner.progress

    def run(self, unit: Unit) -> ShardReport | PartReport:
        return caption_shard(unit, self.captioner, self.table, self.retry_failed)
