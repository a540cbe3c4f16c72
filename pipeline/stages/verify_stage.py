"""The stage that generates an image from every prompt of a unit and scores it with the judge."""

import dataclasses
from typing import Any

from pipeline.description import model_of
from pipeline.settings import VerifySettings
from pipeline.sources.base import Unit
from pipeline.stages.verified_table import VerifiedTable, VerifyReport
from pipeline.stages.verify import Verifier, VerifyProgress, verify_shard
from pipeline.table import PromptTable


@dataclasses.dataclass(frozen=True)
class VerifyStage:
    """Verify the prompts of an output folder.

    Args:
        output: what is opened as the folder; it may hold a password.
        captioned, verified: descriptions of the prompts and of their verification.
    """

    settings: VerifySettings
    output: str
    captioned: dict[str, Any]
    verified: dict[str, Any]
    name: str = "verification"

    @classmethod
    def of(cls, settings: VerifySettings, table: VerifiedTable) -> "VerifyStage":
        """The stage that fills in a table's columns."""
        return cls(settings, table.prompts.source, table.prompts.settings, table.settings)

    def open(self, device: str, threads: int) -> "VerifyWorker":
        """Load the generator and the judge."""
        return VerifyWorker(self, Verifier(self.settings, model_of(self.captioned).model, device, threads))


class VerifyWorker:
    """A generator and a judge, and the folder with the prompts."""

    def __init__(self, stage: VerifyStage, verifier: Verifier) -> None:
        self.verifier = verifier
        prompts = PromptTable(stage.output, stage.captioned)
        self.table = VerifiedTable(prompts, stage.verified, stage.settings.keep_images)

    @property
    def progress(self) -> VerifyProgress:
        return self.verifier.progress

    def run(self, unit: Unit) -> VerifyReport:
        return verify_shard(unit, self.verifier, self.table)
