"""The paper's table on your data: what a generator makes of the learned prompts, beside captions and random prompts.

    python -m jobs.evaluate --demo
    python -m jobs.evaluate --input 'shards/*.tar' --images 256 --verify stabilityai/stable-diffusion-2-1 --tokens 16

For each kind of prompt: its similarity under the guide and under the score model, and the similarity of the pictures that the
generator makes of it with the originals, under the score model; means with 95% intervals. `similarity` is that of the text.
Of several pictures of a prompt (`--verify-images`) their mean counts.
Source: Wen et al. 2023, arXiv:2302.03668, Table 1.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from jobs import command
from jobs.arguments import Group
from jobs.caption import note_on_the_demo
from jobs.options import (
    LearnOptions,
    expect_device,
    expect_generator,
    expect_writable,
    of_demo,
    refuse_beside_demo,
    refuse_ignored,
)
from pez.errors import UserError
from pipeline.settings import PaintSettings
from pipeline.terminal import Activity, count, open_console, plain, say

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table

    import pez
    from pez.demo import scenes
    from pez.models.clip import Clip
    from pez.regeneration import Generator


@dataclasses.dataclass(frozen=True)
class EvaluateJob(LearnOptions):
    """Options of the job."""

    input: tuple[str, ...] = ()
    """tars, as for jobs.caption"""
    demo: bool = False
    """held-out drawn scenes and the shipped models, offline"""
    images: int = 64
    """how many"""
    json: Path | None = None
    """write the figures"""
    picture: Path | None = None
    """write a grid of originals and of what was made of captions and prompts, as PNG"""
    verification: Annotated[PaintSettings, Group("verification")] = PaintSettings()

    def check(self, given: frozenset[str]) -> None:
        """Refuse what could only be ignored, and what can be told without loading anything."""
        if self.demo:
            refuse_beside_demo(self.caption, given, ["input"])
        elif not self.input:
            raise UserError("no input given; expected --input with the URL of a tar, or --demo")
        refuse_ignored(given | ({"verify"} if self.demo else frozenset()), self.method)
        if not 1 <= self.images <= 100_000:
            raise UserError(f"images is {self.images}; expected 1 to 100,000")
        expect_device(self.device)
        expect_writable(self.json, "--json")
        expect_writable(self.picture, "--picture")
        if self.json is not None and self.picture is not None and self.json.absolute() == self.picture.absolute():
            raise UserError(f"--json and --picture are both {self.json}; expected two files")


@dataclasses.dataclass(frozen=True)
class Originals:
    """What is evaluated on."""

    keys: list[str]
    pictures: list[Image.Image]
    captions: list[str] | None
    """None unless every picture has one"""
    told: list[scenes.Scene] | None = None
    """of drawn scenes"""


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean and half of its 95% interval."""

    mean: float | None
    """None of no value"""
    interval: float | None
    """None of fewer than two"""

    def __str__(self) -> str:
        if self.mean is None:
            return "none"
        return f"{self.mean:.3f}" if self.interval is None else f"{self.mean:.3f} ± {self.interval:.3f}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One kind of prompt."""

    prompts: str
    guide: Mean
    """similarity of prompt and original under the guide"""
    judge: Mean
    """the same under the score model"""
    regenerated: Mean
    """similarity of pictures made and originals under the score model"""
    blanked: int
    """pictures that the safety checker blanked"""
    named: dict[str, float]
    """drawn scenes: share of pictures made that show the original's attribute, as the score model sees it"""


def evaluate(job: EvaluateJob) -> int:
    """Run the job; returns its exit status."""
    if not job.demo:
        expect_generator(job.verification)
    console = open_console()
    with Activity(console, "loading PyTorch") as activity:
        with command.importing():
            import pez
            from pez.models.load import check_model, load_clip, load_model
            from pipeline.run.hub import check_reachable
            from pipeline.stages.verify import check_verification, generator_of, resolved, score_model

        if job.demo:
            verification = dataclasses.replace(job.verification, verify=job.verification.verify or "demo")
            job = dataclasses.replace(job, caption=of_demo(job.caption), verification=verification)
        job = dataclasses.replace(job, verification=resolved(job.verification))
        check_model(job.caption.model, job.caption.pretrained, job.method.tokens)
        device = job.local_device()
        job = dataclasses.replace(job, caption=job.caption.on(device))
        check_verification(job.verification, job.caption.model, job.caption.pretrained, device)
        name, pretrained = score_model(job.verification, job.caption.model)
        check_reachable(job.caption.model, job.caption.pretrained)
        check_reachable(name, pretrained)
        activity.now("reading images")
        originals = drawn(job.images) if job.demo else read(job)
        if not job.demo and (note := note_on_the_demo(job.caption.model)):
            say(console, note)
        if len(originals.keys) < job.images:
            say(
                console,
                f"note: the input has {count(len(originals.keys), 'picture')}, fewer than --images {job.images}",
            )
        # All that may fail to load comes before the work.
        activity.now(f"loading {job.caption.model}")
        guide = load_model(job.caption, device)
        guide.vocabulary(job.method)
        activity.now(f"loading {name}")
        judge = load_clip(name, pretrained, device)
        activity.now(f"loading the generator {job.verification.verify}")
        generator = generator_of(job.verification, device)
        learning = f"learning {count(len(originals.keys), 'prompt')}"
        steps = activity.counted(learning, _steps_of(job, len(originals.keys)))
        prompts = pez.learn_prompts(
            guide, originals.pictures, job.method, originals.keys, lambda _: steps(), job.caption.lanes
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
        say(console, f"{count(blanked, 'picture')} blanked by the safety checker, and in no figure")
    for line in unwritten:
        say(console, plain(line), "red")
    return 1 if unwritten else 0


def _write_figures(
    job: EvaluateJob, originals: Originals, guide: Clip, judge: Clip, outcomes: Sequence[Outcome]
) -> str | None:
    """Returns why they could not be written."""
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
    """Returns why it could not be written."""
    if job.picture is None:
        return None
    rows: list[Sequence[Image.Image | None]] = [originals.pictures]
    # Of several pictures of a prompt the first.
    rows += (made[kind][:: job.verification.verify_images] for kind in ("caption", "learned", "random") if kind in made)
    try:
        grid(rows, count=12).save(job.picture, "PNG")
    except OSError as error:
        return f"failed: cannot write {job.picture}: {error.strerror}"
    return None


def _steps_of(job: EvaluateJob, images: int) -> int:
    """Steps until all prompts are learned, so many side by side."""
    method, rounds = job.method, -(-images // job.caption.side_by_side)
    return rounds * method.total_steps


def drawn(count: int) -> Originals:
    """Held-out scenes."""
    from PIL import Image

    from pez.demo import scenes

    told = scenes.held_out_scenes(count)
    pictures = [Image.fromarray(scenes.render(scene)) for scene in told]
    return Originals([f"{i:05d}" for i in range(count)], pictures, [scenes.caption(s) for s in told], told)


def read(job: EvaluateJob) -> Originals:
    """The first pictures of the input that can be decoded.

    Raises:
        UserError: there is none.
    """
    from pez.images import decode_image
    from pipeline.sources.base import LateCaption
    from pipeline.sources.inputs import expand_inputs
    from pipeline.sources.tars import TarSource

    keys: list[str] = []
    pictures: list[Image.Image] = []
    captions: list[str | None] = []
    shards = expand_inputs(job.input)
    options = job.caption
    source = TarSource(options.image_key, options.caption_key, options.key_split, options.allow_unfinished_tars)
    for sample in itertools.chain.from_iterable(source.read(shard) for shard in shards):
        if sample.image is not None and not isinstance(sample, LateCaption):
            try:
                pictures.append(decode_image(sample.image))
            except ValueError:
                continue
            keys.append(sample.key)
            captions.append(sample.caption)
        if len(keys) == job.images:
            break
    if not keys:
        raise UserError(f"no picture in {len(shards)} shards; expected members like 0001.jpg")
    told = [caption for caption in captions if caption]
    return Originals(keys, pictures, told if len(told) == len(keys) else None)


def random_prompts(guide: Clip, method: pez.PezSettings, keys: Sequence[str]) -> list[str]:
    """Prompts of as many random tokens as the learned ones have, of the same vocabulary."""
    from pez.seeds import generator_for

    vocabulary = guide.vocabulary(method)
    seeds = [generator_for(method.seed, key, 0) for key in keys]
    return [guide.text_of(vocabulary.random_ids(method.tokens, seed).tolist()) for seed in seeds]


def regenerate(
    settings: PaintSettings,
    guide: Clip,
    judge: Clip,
    generator: Generator,
    originals: Originals,
    kinds: dict[str, list[str]],
    activity: Activity,
) -> tuple[list[Outcome], dict[str, list[Image.Image | None]]]:
    """Score each kind of prompt, and the pictures that the generator makes of it.

    Returns:
        what became of each kind, and its pictures: `verify_images` of each prompt, one after the other.
    """
    from pez.demo import scenes
    from pez.demo.evaluation import named
    from pez.regeneration import picture_similarities, seed_for

    times = settings.verify_images
    of_guide, of_judge = guide.image_features(originals.pictures), judge.image_features(originals.pictures)
    seeds = [seed_for(settings.verify_seed, key, n) for key in originals.keys for n in range(times)]
    outcomes, made = [], {}
    for kind, prompts in kinds.items():
        repeated = [prompt for prompt in prompts for _ in range(times)]
        made[kind] = _painted(generator.images, repeated, seeds, settings.verify_batch, kind, activity)
        similarities = picture_similarities(judge, of_judge.repeat_interleave(times, 0), made[kind])
        seen = {}
        if originals.told is not None:
            told = [scene for scene in originals.told for _ in range(times)]
            there = [(picture, scene) for picture, scene in zip(made[kind], told, strict=True) if picture]
            if there:
                features = judge.image_features([picture for picture, _ in there])
                seen = {
                    name: named(judge.model, features, [scene for _, scene in there], name) for name in scenes.VALUES
                }
        outcomes.append(
            Outcome(
                kind,
                mean_of((guide.text_features(prompts) * of_guide).sum(-1).tolist()),
                mean_of((judge.text_features(prompts) * of_judge).sum(-1).tolist()),
                mean_of(_by_prompt(similarities, times)),
                sum(picture is None for picture in made[kind]),
                seen,
            )
        )
    return outcomes, made


def _by_prompt(similarities: Sequence[float | None], times: int) -> list[float]:
    """The mean of each prompt's pictures, of those that are there."""
    groups = [similarities[i : i + times] for i in range(0, len(similarities), times)]
    there = [[value for value in group if value is not None] for group in groups]
    return [sum(values) / len(values) for values in there if values]


def _painted(
    paint: Callable[[Sequence[str], Sequence[int]], list[Image.Image | None]],
    prompts: list[str],
    seeds: list[int],
    batch: int,
    kind: str,
    activity: Activity,
) -> list[Image.Image | None]:
    """Pictures of prompts, batch after batch, with a word of how far it is."""
    painted: list[Image.Image | None] = []
    done = activity.counted(f"painting {kind} prompts", -(-len(prompts) // batch))
    for i in range(0, len(prompts), batch):
        painted += paint(prompts[i : i + batch], seeds[i : i + batch])
        done()
    return painted


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and interval of what there is."""
    if not values:
        return Mean(None, None)
    return Mean(
        statistics.fmean(values), 1.96 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    )


def outcome_tables(outcomes: Sequence[Outcome]) -> Iterator[Table]:
    """For people: the similarities, and of drawn scenes what the pictures show; two tables, since one is too wide to read."""
    yield _table(
        ("prompts", "similarity", "under the score model", "regenerated"),
        [(o.prompts, str(o.guide), str(o.judge), str(o.regenerated)) for o in outcomes],
    )
    if attributes := list(dict.fromkeys(name for o in outcomes for name in o.named)):
        shares = [(o.prompts, *(f"{o.named[n]:.0%}" if n in o.named else "" for n in attributes)) for o in outcomes]
        yield _table(("shown in", *(name.replace("_", " ") for name in attributes)), shares)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """With headings that may wrap, and numbers that may not."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for i, column in enumerate(columns):
        width = max(len(row[i]) for row in rows)
        table.add_column(column, justify="right" if i else "left", min_width=width)
    for row in rows:
        table.add_row(*row)
    return table


def grid(rows: Sequence[Sequence[Image.Image | None]], count: int, side: int = 96, gap: int = 6) -> Image.Image:
    """The first pictures of each row, one row above the other; a picture that is not there stays white."""
    from PIL import Image

    count = min(count, len(rows[0]))
    sheet = Image.new("RGB", (count * (side + gap) - gap, len(rows) * (side + gap) - gap), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row[:count]):
            if picture is not None:
                sheet.paste(
                    picture.resize((side, side), Image.Resampling.BICUBIC), (x * (side + gap), y * (side + gap))
                )
    return sheet


def main(prog: str | None = None) -> None:
    command.run(EvaluateJob, __doc__, evaluate, prog)


if __name__ == "__main__":
    main()
