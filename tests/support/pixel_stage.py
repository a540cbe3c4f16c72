"""A stage of its own, as a user might write it: counts the pixels of the images of a tar."""

import dataclasses
import json
import warnings
from pathlib import Path

from pez.images import decode_image
from pipeline.run import warning_log
from pipeline.run.tasks import Task
from pipeline.sources.base import UnitError
from pipeline.sources.tars import TarSource


@dataclasses.dataclass(frozen=True)
class PixelReport:
    stem: str
    pixels: int
    warnings: list[str]


@dataclasses.dataclass(frozen=True)
class PixelStage:
    """Writes OUTPUT/<stem>.json; the first attempt at each unit fails."""

    output: str
    name: str = "pixels"

    def open(self, device: str, threads: int) -> "PixelWorker":
        return PixelWorker(Path(self.output))


class PixelWorker:
    def __init__(self, output: Path) -> None:
        self.output, self.progress = output, 0

    def run(self, task: Task) -> PixelReport:
        unit = task.unit
        done = self.output / f"{unit.stem}.json"
        if done.exists():
            return PixelReport(**json.loads(done.read_text()))
        mark = self.output / f"{unit.stem}.tried"
        if not mark.exists():
            mark.touch()
            raise UnitError(f"{unit.url} is out of reach")
        with warning_log.recording() as found:
            images = [decode_image(item.image) for item in TarSource().read(unit) if item.image is not None]
            warnings.warn(f"{unit.stem} has {len(images)} images", stacklevel=1)
        report = PixelReport(unit.stem, sum(image.width * image.height for image in images), found)
        done.write_text(json.dumps(dataclasses.asdict(report)))
        return report
