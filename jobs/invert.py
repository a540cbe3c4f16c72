"""Learn prompts for a few images and show them as they improve.

python -m jobs.invert photo.jpg                          # one prompt an image
python -m jobs.invert style1.png style2.png --together   # one prompt for all
python -m jobs.invert --demo                             # drawn scenes and the shipped model, offline
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import torch
import tyro
from PIL import Image
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

import pez
from jobs import command
from pez.demo import scenes
from pez.optimizer import Step
from pez.settings import Precision
from pipeline.caption import check_settings, load_model
from pipeline.samples import decode_image
from pipeline.settings import CaptionSettings
from pipeline.shards import InputError


@dataclasses.dataclass(frozen=True)
class InvertJob:
    """Options of the job."""

    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """image files"""
    together: bool = False
    """one prompt for all images"""
    demo: bool = False
    """shipped model; without images, four drawn scenes"""
    model: str = "ViT-H-14"
    """demo, an open_clip name, hf-hub:ORG/REPO or local-dir:FOLDER"""
    pretrained: str = "laion2b_s32b_b79k"
    """tag or checkpoint file of an open_clip name"""
    precision: Precision = "fp32"
    device: str | None = None
    """cpu or cuda; default = cuda where there is one"""
    method: Annotated[pez.PezSettings, tyro.conf.arg(name="")] = pez.PezSettings()


def invert(job: InvertJob) -> int:
    """Run the job; returns its exit status."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    if job.demo:
        job = dataclasses.replace(job, model="demo")
    model = CaptionSettings(model=job.model, pretrained=job.pretrained, precision=job.precision)
    check_settings(model, job.method)
    names, images = _read(job)
    clip = load_model(model, job.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    names = [" + ".join(names)] if job.together else names
    with _Show(clip, names, job.method, console) as show:
        if job.together:
            prompts = [pez.learn_prompt(clip, images, job.method, on_step=show.step)]
        else:
            prompts = pez.learn_prompts(clip, images, job.method, on_step=show.step)
    table = Table(box=None, pad_edge=False)
    for column in ("image", "prompt", "similarity"):
        table.add_column(column, justify="right" if column == "similarity" else "left")
    for name, prompt in zip(names, prompts, strict=True):
        table.add_row(Text(name), Text(prompt.text), f"{prompt.similarity:.3f}")
    console.print(table)
    return 0


def _read(job: InvertJob) -> tuple[list[str], list[Image.Image]]:
    if not job.images:
        if not job.demo:
            raise InputError("no images given; expected image files, or --demo")
        pictured = scenes.held_out_scenes(4)
        return [scenes.caption(s) for s in pictured], [Image.fromarray(scenes.render(s)) for s in pictured]
    images = []
    for path in job.images:
        try:
            images.append(decode_image(path.read_bytes()))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
    return [path.name for path in job.images], images


class _Show:
    """The best prompts so far: a live table in a terminal, else a line for each that improved, every tenth of the way."""

    def __init__(self, clip: pez.Clip, names: list[str], method: pez.PezSettings, console: Console) -> None:
        self.clip, self.names, self.console = clip, names, console
        rounds = 0 if method.exact else method.swaps
        self.steps = method.steps * method.restarts + rounds
        self.taken = 0
        self.best: dict[int, tuple[float, str]] = {}
        self.live = Live(console=console, refresh_per_second=8, transient=True) if console.is_terminal else None

    def __enter__(self) -> "_Show":
        if self.live:
            self.live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.__exit__(None, None, None)

    def step(self, step: Step) -> None:
        self.taken += 1
        every = 10 if self.live else max(1, self.steps // 10)
        if self.taken % every and self.taken not in (1, self.steps):
            return
        scores, ids = step.best_score.tolist(), step.best_ids.tolist()
        for task, score, row in zip(step.tasks, scores, ids, strict=True):
            if task is not None and score > self.best.get(task.handle, (-1.0, ""))[0]:
                self.best[task.handle] = (score, self.clip.text_of(row))
                if not self.live:
                    line = f"step {self.taken:5d}  {score:.3f}  {self.names[task.handle]}: {self.best[task.handle][1]}"
                    self.console.print(line, highlight=False, markup=False, soft_wrap=True)
        if self.live:
            table = Table(box=None, pad_edge=False, title=f"step {self.taken}", title_justify="left")
            for column in ("image", "best so far", "similarity"):
                table.add_column(column)
            for i, (score, text) in sorted(self.best.items()):
                table.add_row(Text(self.names[i]), Text(text), f"{score:.3f}")
            self.live.update(table)


if __name__ == "__main__":
    command.run(InvertJob, __doc__, invert)
