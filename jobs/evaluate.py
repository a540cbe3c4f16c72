"""The paper's table on your data: images generated from learned prompts, from captions and from random prompts.

    python -m jobs.evaluate --demo
    python -m jobs.evaluate --demo --methods all --json methods.json     # every method at equal cost
    python -m jobs.evaluate --demo --lengths 4 8 16 24 --verify demo     # prompts of several lengths
    python -m jobs.evaluate --input 'shards/*.tar' --images 256 --verify stabilityai/stable-diffusion-2-1 --tokens 16

For each kind of prompt: its similarity under the guide and under the judge, and the similarity under the judge of the images
generated from it with the originals; means with 95% intervals. `similarity` is that of the text. With several images per
prompt (`--verify-images`), their mean counts. With several judges (`--score-model A B`), images are compared under the first.
With `--methods` or `--lengths`, images are generated only with `--verify`.
Source: Wen et al. 2023, arXiv:2302.03668, Table 1.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from jobs import command
from jobs.arguments import Group
from jobs.caption import note_on_the_demo
from jobs.comparison import chosen_methods, compare, regenerated, settings_of
from jobs.comparison_files import Comparison
from jobs.options import (
    TAR_OPTIONS,
    LearnOptions,
    expect_device,
    expect_generator,
    expect_one_generator,
    expect_writable,
    of_demo,
    refuse_beside_demo,
    refuse_ignored,
    refuse_without,
    resolved_method,
)
from jobs.outcomes import (
    Originals,
    Outcome,
    grid,
    outcome_tables,
    random_prompts,
    regenerate,
    with_perplexity,
)
from pez.errors import UserError
from pez.models.names import carries_weights
from pipeline.settings import GenerationSettings, GeneratorSettings
from pipeline.terminal import Activity, count, open_console, plain, say

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console

    from pez.models.clip import Clip
    from pez.models.joint import AnyClip
    from pez.regeneration import Generator


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
    """write a PNG: a grid of originals and of the images generated from captions and prompts; with --methods or --lengths, a
    chart (needs matplotlib)"""
    methods: tuple[str, ...] = ()
    """compare methods at the cost of the default: names, or all; differences are to the first"""
    lengths: tuple[int, ...] = ()
    """numbers of tokens: learn prompts of each with the settings at hand, and name the best number"""
    markdown: Path | None = None
    """write the tables of --methods and --lengths to this file"""
    parquet: Path | None = None
    """write every prompt of --methods and --lengths, with its scores, to this file"""
    verification: Annotated[GenerationSettings, Group("verification")] = GenerationSettings()
    score_model: Annotated[tuple[str, ...], Group("verification")] = ()
    """one or more judges, CLIPs that score the prompts, as for --model; default = one that differs from the guide:
    ViT-bigG-14, ViT-H-14 or demo-judge"""
    score_pretrained: Annotated[tuple[str, ...], Group("verification")] = ()
    """pretrained tags or checkpoint files of those judges that are open_clip names, in their order"""

    @property
    def compares(self) -> bool:
        """Whether methods or lengths are compared."""
        return bool(self.methods or self.lengths)

    def check(self, given: frozenset[str]) -> None:
        """Refuse options that would be ignored, and everything that can be checked without loading anything."""
        if self.demo:
            refuse_beside_demo(self.caption, given, ["input"])
            refuse_without("input", given, TAR_OPTIONS, "with --demo, which reads no tars")
        elif not self.input:
            raise UserError("no input given; expected --input with the URL of a tar, or --demo")
        refuse_without("", given, {"caption_weight"}, "with pez evaluate, whose prompts are learned from images alone")
        heeded = given
        if self.demo and not self.compares:
            heeded = given | {"verify"}
        elif self.compares and "score_model" in given:  # judges score texts, too
            heeded = given - {"score_model", "score_pretrained"}
        refuse_ignored(heeded, self.method, self.caption)
        expect_one_generator(self.verification)
        if not 1 <= self.images <= 100_000:
            raise UserError(f"images is {self.images}; expected 1 to 100,000")
        if self.compares:
            self._check_comparison(given)
        else:
            refuse_without("", given, {"markdown", "parquet"}, "without --methods or --lengths")
        expect_device(self.device)
        files = {"--" + name: getattr(self, name) for name in ("json", "picture", "markdown", "parquet")}
        for option, file in files.items():
            expect_writable(file, option)
        for (one, file), (other, second) in itertools.combinations(files.items(), 2):
            if file is not None and second is not None and file.absolute() == second.absolute():
                raise UserError(f"{one} and {other} are both {file}; expected two files")

    def _check_comparison(self, given: frozenset[str]) -> None:
        if len(self.caption.models) > 1:
            raise UserError(
                f"--model names {len(self.caption.models)} models; expected one with --methods or --lengths"
            )
        if self.methods:
            chosen_methods(self.methods, self.demo or bool(self.method.bank))
            if {"method", "exact"} & given:
                raise UserError("--methods and --method are both given; expected one of them")
        if wrong := [length for length in self.lengths if not 1 <= length <= 1000]:
            raise UserError(f"--lengths contains {wrong[0]}; expected numbers of tokens, 1 or more")
        if self.picture is not None and find_spec("matplotlib") is None:
            raise UserError("--picture needs matplotlib; pip install matplotlib")


def evaluate(job: EvaluateJob) -> int:
    """Run the job; returns its exit status."""
    if not job.demo and not (job.compares and job.verification.verify is None):
        expect_generator(job.verification)
    console = open_console()
    with Activity(console, "loading PyTorch") as activity:
        with command.importing():
            import pez
            from pez.models.load import check_model, check_models, load_clip, load_model
            from pez.template import template_of
            from pipeline.run.hub import check_guides_reachable, check_reachable
            from pipeline.stages.verification import check_verification, generator_of, resolved, score_model

        if job.demo:
            verify = job.verification.verify or (None if job.compares else "demo")
            verification = dataclasses.replace(job.verification, verify=verify)
            job = dataclasses.replace(job, caption=of_demo(job.caption), verification=verification)
        job = dataclasses.replace(job, method=resolved_method(job.method, job.caption))
        for tokens in job.lengths or (job.method.tokens,):
            check_models(job.caption, tokens, template_of(job.method))
        device = job.local_device()
        settings = [resolved(each) for each in judges_of(job)]
        names = [score_model(each, job.caption.model) for each in settings]
        if settings[0].verify is not None:
            check_verification(settings[0], job.caption.model, job.caption.pretrained, device)
        for model, weights in names:
            check_model(model, weights)
        check_guides_reachable(job.caption)
        for model, weights in names:
            check_reachable(model, weights)
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
        judges = []
        for model, weights in names:
            activity.now(f"loading {model}")
            judges.append(load_clip(model, weights, device))
        generator = None
        if settings[0].verify is not None:
            activity.now(f"loading the generator {settings[0].verify}")
            generator = generator_of(settings[0], device)
        if job.compares:
            comparison = _compared(job, settings[0], guide, judges, generator, originals, activity, console)
        else:
            assert generator is not None, "checked above"
            learning = f"learning {count(len(originals.keys), 'prompt')}"
            steps = activity.counted(learning, _steps_of(job, guide, len(originals.keys), device))
            prompts = pez.learn_prompts(
                guide, originals.images, job.method, originals.keys, lambda _: steps(), job.caption.lanes
            )
            kinds = {"random": random_prompts(guide, job.method, originals.keys), "learned": [p.text for p in prompts]}
            if originals.captions is not None:
                kinds["caption"] = originals.captions
            outcomes, made = regenerate(
                settings[0], guide, judges[0], generator, originals, kinds, activity, judges[1:]
            )
            if job.method.fluency_text:
                outcomes = with_perplexity(outcomes, guide, job.method, kinds)
    if job.compares:
        unwritten = comparison.write(job.json, job.markdown, job.parquet, job.picture)
        tables = comparison.tables()
    else:
        found = (_write_figures(job, originals, guide, judges[0], outcomes), _write_picture(job, originals, made))
        unwritten = [line for line in found if line]
        tables = outcome_tables(outcomes)
    for table in tables:
        console.print(table)
    if not job.compares and (blanked := sum(outcome.blanked for outcome in outcomes)):
        say(console, f"{count(blanked, 'image')} blanked by the safety checker and excluded from the figures")
    for line in unwritten:
        say(console, plain(line), "red")
    return 1 if unwritten else 0


def judges_of(job: EvaluateJob) -> list[GeneratorSettings]:
    """The settings with each judge, at least one.

    Raises:
        UserError: more weights than judges that need some.
    """
    weights = list(job.score_pretrained)
    values = dataclasses.asdict(job.verification)
    found = []
    for name in job.score_model or (None,):
        takes = name is not None and not carries_weights(name) and bool(weights)
        found.append(GeneratorSettings(**values, score_model=name, score_pretrained=weights.pop(0) if takes else None))
    if weights:
        raise UserError(
            f"--score-pretrained {weights[0]} has no effect; expected one for each judge with an open_clip name"
        )
    return found


def _compared(
    job: EvaluateJob,
    settings: GeneratorSettings,
    guide: AnyClip,
    judges: Sequence[Clip],
    generator: Generator | None,
    originals: Originals,
    activity: Activity,
    console: Console,
) -> Comparison:
    from pez.demo import scenes
    from pez.models.clip import Clip

    assert isinstance(guide, Clip), "several models are refused"

    phrases = job.method.bank or (scenes.phrases() if job.demo else ())
    budget = dataclasses.replace(job.method, bank=())
    methods, note = chosen_methods(job.methods, bool(phrases)) if job.methods else ([], None)
    if note:
        say(console, note)
    lanes = job.caption.on(str(guide.device)).side_by_side
    chosen = [settings_of(method, budget, phrases) for method in methods]
    lengths = [dataclasses.replace(job.method, tokens=length) for length in sorted(set(job.lengths))]
    found = [compare(guide, judges, originals, chosen, budget, lanes, activity)] if chosen else [[]]
    found.append([each for one in lengths for each in compare(guide, judges, originals, [one], one, lanes, activity)])
    if generator is not None:
        found = [
            [regenerated(each, settings, judges[0], generator, originals, activity) for each in part] for part in found
        ]
    about = {
        "images": len(originals.keys),
        "guide": guide.name,
        "judges": [judge.name for judge in judges],
        "generator": settings.verify,
        "vocabulary": job.method.vocabulary,
    }
    return Comparison(about, originals.keys, *found)


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


def _steps_of(job: EvaluateJob, guide: AnyClip, images: int, device: str) -> int:
    """Steps until all prompts are learned, `lanes` at a time."""
    from pez.learn import settings_for

    return settings_for(guide, job.method).steps_for(images, job.caption.on(device).side_by_side)


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
