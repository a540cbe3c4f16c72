"""The paper's table on your data: images generated from learned prompts, from captions and from random prompts.

    python -m jobs.evaluate --demo
    python -m jobs.evaluate --input 'shards/*.tar' --images 256 --verify stabilityai/stable-diffusion-2-1 --tokens 16

For each kind of prompt: its similarity under the guide and under the judge, and the similarity under the judge of the images
generated from it with the originals; means with 95% intervals. `similarity` is that of the text. With several images per
prompt (`--verify-images`), their mean counts.
Source: Wen et al. 2023, arXiv:2302.03668, Table 1.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from jobs import command
from jobs.arguments import Group
from jobs.caption import note_on_the_demo
from jobs.options import (
    TAR_OPTIONS,
    LearnOptions,
    expect_device,
    expect_generator,
    expect_writable,
    of_demo,
    refuse_beside_demo,
    refuse_ignored,
    refuse_without,
)
from jobs.outcomes import Originals, Outcome, grid, outcome_tables, random_prompts, regenerate
from pez.errors import UserError
from pipeline.settings import GeneratorSettings
from pipeline.terminal import Activity, count, open_console, plain, say

if TYPE_CHECKING:
    from PIL import Image

    from pez.models.clip import Clip
    from pez.models.joint import AnyClip


@dataclasses.dataclass(frozen=True)
class EvaluateJob(LearnOptions):
    """Options of `pez evaluate`."""

    input: tuple[str, ...] = ()
    """tars, as for jobs.caption"""
    demo: bool = False
    """use held-out drawn scenes and the demo models, offline"""
    images: int = 64
    """number of images"""
    json: Path | None = None
    """write the figures to this file"""
    picture: Path | None = None
    """write a PNG grid of originals and of the images generated from captions and prompts"""
    verification: Annotated[GeneratorSettings, Group("verification")] = GeneratorSettings()

    def check(self, given: frozenset[str]) -> None:
        """Refuse options that would be ignored, and everything that can be checked without loading anything."""
        if self.demo:
            refuse_beside_demo(self.caption, given, ["input"])
            refuse_without("input", given, TAR_OPTIONS, "with --demo, which reads no tars")
        elif not self.input:
            raise UserError("no input given; expected --input with the URL of a tar, or --demo")
        refuse_without("", given, {"caption_weight"}, "with pez evaluate, whose prompts are learned from images alone")
        refuse_ignored(given | ({"verify"} if self.demo else frozenset()), self.method, self.caption)
        if not 1 <= self.images <= 100_000:
            raise UserError(f"images is {self.images}; expected 1 to 100,000")
        expect_device(self.device)
        expect_writable(self.json, "--json")
        expect_writable(self.picture, "--picture")
        if self.json is not None and self.picture is not None and self.json.absolute() == self.picture.absolute():
            raise UserError(f"--json and --picture are both {self.json}; expected two files")


def evaluate(job: EvaluateJob) -> int:
    """Run the job; returns its exit status."""
    if not job.demo:
        expect_generator(job.verification)
    console = open_console()
    with Activity(console, "loading PyTorch") as activity:
        with command.importing():
            import pez
            from pez.models.load import check_models, load_clip, load_model
            from pez.template import template_of
            from pipeline.run.hub import check_guides_reachable, check_reachable
            from pipeline.stages.verify import check_verification, generator_of, resolved, score_model

        if job.demo:
            verification = dataclasses.replace(job.verification, verify=job.verification.verify or "demo")
            job = dataclasses.replace(job, caption=of_demo(job.caption), verification=verification)
        job = dataclasses.replace(job, verification=resolved(job.verification))
        check_models(job.caption, job.method.tokens, template_of(job.method))
        device = job.local_device()
        check_verification(job.verification, job.caption.model, job.caption.pretrained, device)
        name, pretrained = score_model(job.verification, job.caption.model)
        check_guides_reachable(job.caption)
        check_reachable(name, pretrained)
        activity.now("reading images")
        originals = drawn(job.images) if job.demo else read(job)
        if not job.demo and (note := note_on_the_demo(job.caption)):
            say(console, note)
        if len(originals.keys) < job.images:
            say(
                console,
                f"note: the input has {count(len(originals.keys), 'image')}, fewer than --images {job.images}",
            )
        # Load everything before the work, because loading may fail.
        activity.now(f"loading {job.caption.name}")
        guide = load_model(job.caption, device)
        guide.vocabulary(job.method)
        activity.now(f"loading {name}")
        judge = load_clip(name, pretrained, device)
        activity.now(f"loading the generator {job.verification.verify}")
        generator = generator_of(job.verification, device)
        learning = f"learning {count(len(originals.keys), 'prompt')}"
        steps = activity.counted(learning, _steps_of(job, len(originals.keys), device))
        prompts = pez.learn_prompts(
            guide, originals.images, job.method, originals.keys, lambda _: steps(), job.caption.lanes
        )
        kinds = {"random": random_prompts(guide, job.method, originals.keys), "learned": [p.text for p in prompts]}
        if originals.captions is not None:
            kinds["caption"] = originals.captions
        outcomes, made = regenerate(job.verification, guide, judge, generator, originals, kinds, activity)
    unwritten = [
        line
        for line in (_write_figures(job, originals, guide, judge, outcomes), _write_picture(job, originals, made))
        if line
    ]
    for table in outcome_tables(outcomes):
        console.print(table)
    if blanked := sum(outcome.blanked for outcome in outcomes):
        say(console, f"{count(blanked, 'image')} blanked by the safety checker and excluded from the figures")
    for line in unwritten:
        say(console, plain(line), "red")
    return 1 if unwritten else 0


def _write_figures(
    job: EvaluateJob, originals: Originals, guide: AnyClip, judge: Clip, outcomes: Sequence[Outcome]
) -> str | None:
    """Return the reason if they cannot be written."""
    if job.json is None:
        return None
    values: dict[str, Any] = {"images": len(originals.keys), "guide": guide.name, "judge": judge.name}
    values |= {"generator": job.verification.verify, "outcomes": [dataclasses.asdict(outcome) for outcome in outcomes]}
    try:
        job.json.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        return f"failed: cannot write {job.json}: {error.strerror}"
    return None


def _write_picture(job: EvaluateJob, originals: Originals, made: dict[str, list[Image.Image | None]]) -> str | None:
    """Return the reason if it cannot be written."""
    if job.picture is None:
        return None
    rows: list[Sequence[Image.Image | None]] = [originals.images]
    # The first image of each prompt.
    rows += (made[kind][:: job.verification.verify_images] for kind in ("caption", "learned", "random") if kind in made)
    try:
        grid(rows, count=12).save(job.picture, "PNG")
    except OSError as error:
        return f"failed: cannot write {job.picture}: {error.strerror}"
    return None


def _steps_of(job: EvaluateJob, images: int, device: str) -> int:
    """Steps until all prompts are learned, `lanes` at a time."""
    return -(-images // job.caption.on(device).side_by_side) * job.method.total_steps


def drawn(count: int) -> Originals:
    """Held-out scenes."""
    from PIL import Image

    from pez.demo import scenes

    chosen = scenes.held_out_scenes(count)
    images = [Image.fromarray(scenes.render(scene)) for scene in chosen]
    return Originals([f"{i:05d}" for i in range(count)], images, [scenes.caption(s) for s in chosen], chosen)


def read(job: EvaluateJob) -> Originals:
    """The first images of the input that can be decoded.

    Raises:
        UserError: there are none.
    """
    from pez.images import decode_image
    from pipeline.folder import OutputFolder
    from pipeline.sources.base import LateCaption
    from pipeline.sources.choice import source_of
    from pipeline.sources.image_inputs import find_images

    keys: list[str] = []
    images: list[Image.Image] = []
    captions: list[str | None] = []
    with tempfile.TemporaryDirectory() as lists:
        found = find_images(job.input, OutputFolder(lists), job.caption, Counter())
        found.record(OutputFolder(lists))
        source = source_of(found.settings)
        for sample in itertools.chain.from_iterable(source.read(unit, Counter()) for unit in found.units):
            if sample.image is not None and not isinstance(sample, LateCaption):
                try:
                    images.append(decode_image(sample.image))
                except ValueError:
                    continue
                keys.append(sample.key)
                captions.append(sample.caption)
            if len(keys) == job.images:
                break
    if not keys:
        raise UserError(f"no images in {count(len(found.units), 'unit')}; expected {source.nouns[1]}")
    given = [caption for caption in captions if caption]
    return Originals(keys, images, given if len(given) == len(keys) else None)


def main(prog: str | None = None) -> None:
    command.run(EvaluateJob, __doc__, evaluate, prog)


if __name__ == "__main__":
    main()
