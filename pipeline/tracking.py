"""A job in Weights & Biases: the figures of each unit, and a few of its images with their prompts."""

import contextlib
import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

from pez.errors import UserError
from pez.images import ImageError
from pipeline.gallery.pictures import items_of, thumbnail
from pipeline.rows import ShardReport
from pipeline.sources.base import Unit, UnitError
from pipeline.sources.choice import image_source_of
from pipeline.table import PromptTable

_IMAGES = 4  # of each unit
_SIDE = 256  # pixels of the longer side


class Tracker:
    """A run in Weights & Biases.

    Args:
        project: name of the project.
        table: the output.
        units: of the job.
        settings: all settings of the job, for its page.

    Raises:
        UserError: the package is missing, or the run cannot begin.
    """

    def __init__(self, project: str, table: PromptTable, units: list[Unit], settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("--wandb needs a package; pip install -e '.[wandb]'") from error
        self.wandb, self.table, self.units = wandb, table, {unit.url: unit for unit in units}
        try:
            config = {**settings, "output": table.url}
            self.run = wandb.init(project=project, config=config, job_type="caption", settings={"silent": True})
        except Exception as error:  # of many kinds: no login, no network
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"--wandb {project} cannot begin: {reason}; WANDB_MODE=offline needs no login") from error
        self.rows = self.failed = 0

    def report(self, report: ShardReport) -> None:
        """Log a finished unit. A problem of the log never ends a job."""
        self.rows, self.failed = self.rows + report.ok, self.failed + report.rows - report.ok
        values: dict[str, Any] = {"images": self.rows, "failed": self.failed, "unit/seconds": report.seconds}
        if report.mean_similarity is not None:
            values["unit/similarity"] = report.mean_similarity
        with contextlib.suppress(UserError, OSError):  # the pictures are an extra
            values["unit/samples"] = self._samples(report)
        with contextlib.suppress(Exception):
            self.run.log(values)

    def finish(self, status: int) -> None:
        """End the run with the exit status of the job."""
        with contextlib.suppress(Exception):
            self.run.finish(exit_code=status)

    def _samples(self, report: ShardReport) -> list[Any]:
        """The first images of a unit with their prompts."""
        unit = self.units[report.shard]
        rows = [row for row in self.table.read(unit).slice(0, 64).to_pylist() if row["status"] == "ok"][:_IMAGES]
        prompts = {row["key"]: f"{row['prompt']} ({row['similarity']:.3f})" for row in rows}
        found = []
        with contextlib.suppress(UnitError):
            for item in items_of(image_source_of(self.table.settings), unit, prompts.keys()):
                if item.image is not None:
                    with contextlib.suppress(ImageError, OSError):
                        picture = Image.open(io.BytesIO(thumbnail(item.image, _SIDE)))
                        found.append(self.wandb.Image(picture, caption=prompts[item.key]))
        return found
