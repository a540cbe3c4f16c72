"""Learn prompts for a few images and show them as they improve.

python -m jobs.invert photo.jpg                          # one prompt per image
python -m jobs.invert style1.png style2.png --together   # one prompt for all
python -m jobs.invert --demo                             # drawn scenes and a demo model, offline
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
from typing import TYPE_CHECKING, Annotated

import pez
from jobs import command
from jobs.arguments import POSITIONAL, Group
from jobs.caption import note_on_the_demo
from jobs.live import LivePrompts
from jobs.options import DeviceOption, expect_device, refuse_beside_demo, refuse_ignored
from pez.demo import CLIPS
from pez.errors import UserError
from pez.settings import ModelSettings
from pipeline.addresses import public_address, redact
from pipeline.terminal import Activity, open_console, say

if TYPE_CHECKING:
    from PIL import Image

_LARGEST = 256 * 2**20  # bytes of an image file


@dataclasses.dataclass(frozen=True)
class InvertJob(DeviceOption):
    """Options of `pez invert`."""

    images: Annotated[tuple[str, ...], POSITIONAL] = ()
    """image files: paths, patterns with *, or URLs"""
    together: bool = False
    """one prompt for all images"""
    demo: bool = False
    """use a demo model; without images, four drawn scenes"""
    model: Annotated[ModelSettings, Group("model")] = ModelSettings()
    method: Annotated[pez.PezSettings, Group("method")] = pez.PezSettings()

    def check(self, given: frozenset[str]) -> None:
        """Refuse options that would be ignored, and everything that can be checked without loading anything."""
        if self.demo:
            refuse_beside_demo(self.model, given)
        elif not self.images:
            raise UserError("no images given; expected image files, or --demo")
        refuse_ignored(given, self.method, self.model)
        expect_device(self.device)


def invert(job: InvertJob) -> int:
    """Run the job; returns its exit status."""
    console = open_console()
    with Activity(console, "loading PyTorch") as activity:
        with command.importing():
            from pez.models.load import check_model, load_model

        settings = job.model
        if job.demo and settings.model not in CLIPS:
            settings = dataclasses.replace(settings, model="demo")
        check_model(settings.model, settings.pretrained, job.method.tokens)
        device = job.local_device()
        names, images = _read(job.images) if job.images else _drawn()
        if job.images and (note := note_on_the_demo(settings.model)):
            say(console, note)
        activity.now(f"loading {settings.model}")
        clip = load_model(settings, device)
    names = [" + ".join(names)] if job.together else names
    show = LivePrompts(clip, names, job.method, console)
    try:
        with show:
            if job.together:
                prompts = [pez.learn_prompt(clip, images, job.method, on_step=show.step)]
            else:
                prompts = pez.learn_prompts(clip, images, job.method, on_step=show.step)
    except KeyboardInterrupt:
        best = show.best_prompts()
        if best:
            console.print(show.table(best, "best so far"))
        raise KeyboardInterrupt(f"after {show.taken} of {show.steps} steps" if best else "") from None
    console.print(show.table([(n, p.text, p.similarity) for n, p in zip(names, prompts, strict=True)], "prompt"))
    if soft := [p.soft_similarity for p in prompts if p.soft_similarity is not None]:
        say(console, f"soft prompts before their projection: {', '.join(f'{value:.3f}' for value in soft)}")
    return 0


def _drawn() -> tuple[list[str], list[Image.Image]]:
    from PIL import Image

    from pez.demo import scenes

    chosen = scenes.held_out_scenes(4)
    return [scenes.caption(s) for s in chosen], [Image.fromarray(scenes.render(s)) for s in chosen]


def _read(given: tuple[str, ...]) -> tuple[list[str], list[Image.Image]]:
    """Read and decode images, and name them.

    Raises:
        UserError: one cannot be read, or is not an image.
    """
    from pez.images import ImageError, decode_image

    names, images = [], []
    for url in (url for each in given for url in _expanded(each)):
        shown = public_address(url) if "://" in url else url
        try:
            data = _bytes_of(url)
        except OSError as error:
            raise UserError(f"cannot read {shown}: {error.strerror or _one_line(error)}") from error
        try:
            images.append(decode_image(data))
        except ImageError as error:
            raise UserError(f"{shown}: {error}") from error
        names.append(shown.rstrip("/").rsplit("/", 1)[-1])
    return names, images


def _expanded(given: str) -> list[str]:
    """Expand `~` and patterns that the shell has not expanded."""
    if "://" in given:
        return [given]
    path = os.path.expanduser(given)
    if os.path.isdir(path):
        raise UserError(
            f"{given} is a folder; expected image files, such as {given.rstrip('/')}/*.jpg, "
            "or, for many images, a tar: tar cf images.tar FOLDER, then pez caption --input images.tar --output OUT"
        )
    if os.path.lexists(path) or not glob.has_magic(path):
        return [path]
    found = sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
    if not found:
        raise UserError(f"no file matches {given}; expected image files")
    return found


def _bytes_of(url: str) -> bytes:
    """Read a path or a URL.

    Raises:
        UserError: it cannot be read, or is too large.
    """
    if "://" not in url:
        if os.path.exists(url) and not os.path.isfile(url):
            raise UserError(f"{url} is not a file; expected an image file")
        with open(url, "rb") as file:
            data = file.read(_LARGEST + 1)
    else:
        from pipeline.sources.stores import missing_driver
        from pipeline.sources.streams import ByteStream

        try:
            with contextlib.closing(ByteStream(url)) as stream:
                parts: list[bytes] = []
                while sum(map(len, parts)) <= _LARGEST and (part := stream.read(2**22)):
                    parts.append(part)
            data = b"".join(parts)
        except ImportError as error:
            raise UserError(missing_driver(url, error)) from error
        except Exception as error:  # each filesystem has its own errors
            reason = _one_line(error)
            if reason == url:  # HTTP clients give only the URL if nothing listens on the port
                reason = "nothing is there, or the server does not answer"
            raise UserError(f"cannot read {public_address(url)}: {redact(reason, url)}") from error
    if len(data) > _LARGEST:
        raise UserError(f"{public_address(url)} has more than {_LARGEST >> 20} MiB; expected an image file")
    return data


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def main(prog: str | None = None) -> None:
    command.run(InvertJob, __doc__, invert, prog)


if __name__ == "__main__":
    main()
