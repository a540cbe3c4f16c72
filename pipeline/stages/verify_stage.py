"""The stage that generates an image from every prompt of a unit and scores it with the judge."""

import dataclasses
from typing import Any

from pipeline.description import model_of
from pipeline.run.tasks import Task
from pipeline.settings import VerifySettings
from pipeline.stages.verified_table import VerifiedTable, VerifyReport
from pipeline.stages.verify import Verifier, VerifyProgress, verify_unit
from pipeline.table import PromptTable


@dataclasses.dataclass(frozen=True)
class VerifyStage:
    """Verify the prompts of an output folder.

    Args:
        output: URL to open as the folder; it may contain a password.
        prompts, verified: descriptions of the prompts and of their verification.
    """

    settings: VerifySettings
    output: str
    prompts: dict[str, Any]
    verified: dict[str, Any]
    name: str = "verification"

    @classmethod
    def of(cls, settings: VerifySettings, table: VerifiedTable) -> "VerifyStage":
        """The stage that fills in the columns of a table."""
        return cls(settings, table.prompts.source, table.prompts.settings, table.settings)

    def open(self, device: str, threads: int) -> "VerifyWorker":
        """Load the generator and the judge."""
        verifier = Verifier(self.settings, model_of(self.prompts), device, threads)
        prompts = PromptTable(self.output, self.prompts)
        return VerifyWorker(verifier, VerifiedTable(prompts, self.verified, self.settings.keep_images))


class VerifyWorker:
    """A generator and a judge, and the folder with the prompts."""

    def __init__(self, verifier: Verifier, table: VerifiedTable) -> None:
        self.verifier, self.table = verifier, table

    @property
    def progress(self) -> VerifyProgress:
        return self.verifier.progress

    def run(self, task: Task) -> VerifyReport:
        return verify_unit(task.unit, self.verifier, self.table)
