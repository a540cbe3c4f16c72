"""Learn prompts for a few images and show them as they improve.

python -m jobs.invert photo.jpg                          # one prompt per image
python -m jobs.invert style1.png style2.png --together   # one prompt for all
python -m jobs.invert a.png b.png --together --weights 1 -0.3 --text "oil painting"
python -m jobs.invert a.png b.png --mix                  # a prompt for each, these joined, and one prompt for both
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
from jobs.options import (
    DeviceOption,
    expect_device,
    refuse_beside_demo,
    refuse_ignored,
    refuse_without,
    resolved_method,
)
from pez.errors import UserError
from pez.models.names import is_demo
from pez.settings import ModelSettings
from pipeline.sources.member_names import IMAGE_EXTENSIONS
from pipeline.terminal import Activity, Column, FittedTable, open_console, say
from pipeline.urls import public_url, redact

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
    weights: tuple[float, ...] = ()
    """with --together: one number per image, then one per --text; negative = away from it. Default = all 1"""
    text: tuple[str, ...] = ()
    """with --together: texts that the prompt should also be close to"""
    mix: bool = False
    """a prompt for each image, these prompts joined, and one prompt for all, each with its similarity to every image"""
    demo: bool = False
    """use a demo model; without images, four drawn scenes"""
    model: Annotated[ModelSettings, Group("model")] = ModelSettings()
    method: Annotated[pez.PezSettings, Group("method")] = pez.PezSettings()

    def __post_init__(self) -> None:
        """Images may also follow an option of several words, as in `--model demo a.jpg`."""
        text, of_text = _without_images(self.text)
        model, of_model = _without_images(self.model.models)
        weights = self.model.pretrained
        pretrained, of_pretrained = _without_images((weights,) if isinstance(weights, str) else weights)
        settings = dataclasses.replace(self.model, model=model, pretrained=pretrained)
        object.__setattr__(self, "model", settings)
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "images", (*self.images, *of_text, *of_model, *of_pretrained))

    def check(self, given: frozenset[str]) -> None:
        """Refuse options that would be ignored, and everything that can be checked without loading anything."""
        if self.demo:
            refuse_beside_demo(self.model, given)
        elif not self.images:
            raise UserError("no images given; expected image files, or --demo")
        refuse_without("together", given, {"weights", "text"}, "without --together")
        if self.together and self.mix:
            raise UserError("--together and --mix are both given; expected one of them")
        refuse_ignored(given, self.method, self.model)
        expect_device(self.device)


def invert(job: InvertJob) -> int:
    """Run the job; returns its exit status."""
    console = open_console()
    with Activity(console, "loading PyTorch") as activity:
        with command.importing():
            from pez.learn import weights_for
            from pez.models.load import check_models, load_model
            from pez.template import template_of

        settings = job.model
        if job.demo and not is_demo(settings):
            settings = dataclasses.replace(settings, model="demo")
        job = dataclasses.replace(job, method=resolved_method(job.method, settings))
        check_models(settings, job.method.tokens, template_of(job.method))
        device = job.local_device()
        names, images = _read(job.images) if job.images else _drawn()
        if job.weights:
            weights_for(len(images), len(job.text), job.weights)
        if job.mix and len(images) < 2:
            raise UserError(f"--mix has {len(images)} image; expected two or more")
        if job.images and (note := note_on_the_demo(settings)):
            say(console, note)
        activity.now(f"loading {settings.name}")
        clip = load_model(settings, device)
    targets = [*names, *job.text]
    names = [" + ".join(targets)] if job.together else [*names, " + ".join(names)] if job.mix else names
    show = LivePrompts(clip, names, job.method, console)
    try:
        with show:
            if job.together:
                prompts = [pez.learn_prompt(clip, images, job.method, job.weights or None, show.step, job.text)]
            elif job.mix:
                mixture = pez.mix(clip, images, job.method, show.step)
                names[-1:] = ["all, joined", "one for all"]
                prompts = [*mixture.prompts, mixture.joined, mixture.shared]
            else:
                prompts = pez.learn_prompts(clip, images, job.method, on_step=show.step)
    except KeyboardInterrupt:
        best = show.best_prompts()
        if best:
            console.print(show.table(best, "best so far"))
        raise KeyboardInterrupt(f"after {show.taken} of {show.steps} steps" if best else "") from None
    if job.mix:
        console.print(_similarities_to(targets, names, prompts))
        return 0
    console.print(show.table([(n, p.text, p.similarity) for n, p in zip(names, prompts, strict=True)], "prompt"))
    if job.method.candidates_kept > 1:
        console.print(_alternatives(names, prompts))
    if job.method.fluency_text:
        values = (f"{prompt.perplexity:.1f}" if prompt.perplexity else "none" for prompt in prompts)
        say(console, f"perplexity: {', '.join(values)}")
    if len(settings.models) > 1:
        console.print(_by_model(settings.models, names, prompts))
    if job.together and len(targets) > 1:
        console.print(_parts(targets, job.weights or (1.0,) * len(targets), prompts[0]))
    if soft := [p.soft_similarity for p in prompts if p.soft_similarity is not None]:
        say(console, f"soft prompts before their projection: {', '.join(f'{value:.3f}' for value in soft)}")
    return 0


def _similarities_to(targets: list[str], names: list[str], prompts: list[pez.Prompt]) -> FittedTable:
    """Each prompt, with its similarity to every target."""
    columns = [Column("prompt of", "name"), Column("prompt"), *(Column(f"to {target}", "number") for target in targets)]
    rows = [
        [name, prompt.text, *(f"{similarity:.3f}" for similarity in prompt.target_similarities)]
        for name, prompt in zip(names, prompts, strict=True)
    ]
    return FittedTable(columns, rows)


def _alternatives(names: list[str], prompts: list[pez.Prompt]) -> FittedTable:
    """The best other prompts of each target."""
    rows = [
        [name, other.text, f"{other.similarity:.3f}"]
        for name, prompt in zip(names, prompts, strict=True)
        for other in prompt.alternatives[1:]
    ]
    return FittedTable([Column("image", "name"), Column("alternatives"), Column("similarity", "number")], rows)


def _by_model(models: tuple[str, ...], names: list[str], prompts: list[pez.Prompt]) -> FittedTable:
    """The similarity of each prompt under every model."""
    columns = [Column("similarity of", "name"), *(Column(f"under {model}", "number") for model in models)]
    rows = [
        [name, *(f"{similarity:.3f}" for similarity in prompt.model_similarities)]
        for name, prompt in zip(names, prompts, strict=True)
    ]
    return FittedTable(columns, rows)


def _parts(targets: list[str], weights: tuple[float, ...], prompt: pez.Prompt) -> FittedTable:
    """The similarity of one prompt to each of its targets."""
    rows = [
        [target, f"{weight:g}", f"{similarity:.3f}"]
        for target, weight, similarity in zip(targets, weights, prompt.target_similarities, strict=True)
    ]
    return FittedTable([Column("target"), Column("weight", "number"), Column("similarity", "number")], rows)


def _without_images(words: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split words at the first one that looks like an image; the first word never does."""
    for i, word in enumerate(words):
        if i and ("://" in word or glob.has_magic(word) or word.rpartition(".")[2].lower() in IMAGE_EXTENSIONS):
            return words[:i], words[i:]
    return words, ()


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
        shown = public_url(url) if "://" in url else url
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
            f"or, for a prompt for each image of the folder, pez caption --input {given} --output OUT"
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
            raise UserError(f"cannot read {public_url(url)}: {redact(reason, url)}") from error
    if len(data) > _LARGEST:
        raise UserError(f"{public_url(url)} has more than {_LARGEST >> 20} MiB; expected an image file")
    return data


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def main(prog: str | None = None) -> None:
    command.run(InvertJob, __doc__, invert, prog)


if __name__ == "__main__":
    main()
