"""The paper's table on your data: what a generator makes of the learned prompts, beside captions and random prompts.

    python -m jobs.evaluate --demo
    python -m jobs.evaluate --input 'shards/*.tar' --images 256 --verify stabilityai/stable-diffusion-2-1 --tokens 16

For each kind of prompt: its similarity under the guide and under the score model, and the similarity of the pictures that the
generator makes of it with the originals, under the score model; means with 95% intervals. `similarity` is that of the text.
Source: Wen et al. 2023, arXiv:2302.03668, Table 1.
"""

import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

import pez
from jobs import command
from pez.clip import Clip
from pez.demo import scenes
from pez.demo.evaluation import named
from pez.optimizer import generator_for
from pez.regeneration import load_generator, picture_similarities, seed_for
from pipeline.caption import check_settings, load_model
from pipeline.inputs import expand_shards
from pipeline.samples import decode_image, read_samples
from pipeline.settings import CaptionSettings, VerifySettings
from pipeline.shards import InputError
from pipeline.verify import check_verification, score_model


@dataclasses.dataclass(frozen=True)
class EvaluateJob:
    """Options of the job."""

    input: tuple[str, ...] = ()
    """tars, as for jobs.caption"""
    demo: bool = False
    """held-out drawn scenes and the shipped models, offline"""
    images: int = 64
    """how many"""
    device: str | None = None
    """cpu or cuda; default = cuda where there is one"""
    json: Path | None = None
    """write the figures"""
    picture: Path | None = None
    """write a grid of originals and of what was made of captions and prompts, as PNG"""
    caption: Annotated[CaptionSettings, tyro.conf.arg(name="")] = CaptionSettings()
    method: Annotated[pez.PezSettings, tyro.conf.arg(name="")] = pez.PezSettings()
    verification: Annotated[VerifySettings, tyro.conf.arg(name="")] = VerifySettings()


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

    mean: float
    interval: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.interval:.3f}"


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
    named: dict[str, float]
    """drawn scenes: share of pictures made that show the original's attribute, as the score model sees it"""


def evaluate(job: EvaluateJob) -> int:
    """Run the job; returns its exit status."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    if job.demo:
        verification = dataclasses.replace(job.verification, verify=job.verification.verify or "demo")
        caption = dataclasses.replace(job.caption, model="demo")
        job = dataclasses.replace(job, caption=caption, verification=verification)
    check_settings(job.caption, job.method)
    check_verification(job.verification, job.caption.model, job.caption.pretrained)
    device = job.device or ("cuda" if torch.cuda.is_available() else "cpu")
    originals = drawn(job.images) if job.demo else read(job)
    guide = load_model(job.caption, device)
    name, pretrained = score_model(job.verification, job.caption.model)
    judge = load_model(CaptionSettings(model=name, pretrained=pretrained), device)
    learned = [p.text for p in pez.learn_prompts(guide, originals.pictures, job.method, originals.keys)]
    kinds = {"random": random_prompts(guide, job.method, originals.keys), "learned": learned}
    if originals.captions is not None:
        kinds["caption"] = originals.captions
    outcomes, made = regenerate(job, guide, judge, originals, kinds, device)
    console.print(outcome_table(outcomes))
    if job.json is not None:
        values = {"images": len(originals.keys), "guide": guide.name, "judge": judge.name}
        values |= {"outcomes": [dataclasses.asdict(outcome) for outcome in outcomes]}
        job.json.write_text(json.dumps(values, indent=2) + "\n")
    if job.picture is not None:
        rows: list[Sequence[Image.Image | None]] = [originals.pictures]
        rows += (made[kind] for kind in ("caption", "learned", "random") if kind in made)
        grid(rows, count=12).save(job.picture)
    return 0


def drawn(count: int) -> Originals:
    """Held-out scenes."""
    told = scenes.held_out_scenes(count)
    pictures = [Image.fromarray(scenes.render(scene)) for scene in told]
    return Originals([f"{i:05d}" for i in range(count)], pictures, [scenes.caption(s) for s in told], told)


def read(job: EvaluateJob) -> Originals:
    """The first pictures of the input that can be decoded.

    Raises:
        InputError: there is none.
    """
    keys: list[str] = []
    pictures: list[Image.Image] = []
    captions: list[str | None] = []
    shards = expand_shards(job.input)
    samples = (read_samples(s, job.caption.image_key, job.caption.caption_key) for s in shards)
    for sample in itertools.chain.from_iterable(samples):
        if sample.image is not None:
            try:
                pictures.append(decode_image(sample.image))
            except ValueError:
                continue
            keys.append(sample.key)
            captions.append(sample.caption)
        if len(keys) == job.images:
            break
    if not keys:
        raise InputError(f"no picture in {len(shards)} shards; expected members like 0001.jpg")
    told = [caption for caption in captions if caption]
    return Originals(keys, pictures, told if len(told) == len(keys) else None)


def random_prompts(guide: Clip, method: pez.PezSettings, keys: Sequence[str]) -> list[str]:
    """Prompts of as many random tokens as the learned ones have, of the same vocabulary."""
    vocabulary = guide.vocabulary(method)
    seeds = [generator_for(method.seed, key, 0) for key in keys]
    return [guide.text_of(vocabulary.random_ids(method.tokens, seed).tolist()) for seed in seeds]


def regenerate(
    job: EvaluateJob, guide: Clip, judge: Clip, originals: Originals, kinds: dict[str, list[str]], device: str
) -> tuple[list[Outcome], dict[str, list[Image.Image | None]]]:
    """Score each kind of prompt, and the pictures that the generator makes of it."""
    settings = job.verification
    assert settings.verify is not None, "checked"
    generator = load_generator(
        settings.verify,
        device,
        settings.verify_precision or ("fp32" if device == "cpu" else "fp16"),
        settings.verify_scheduler,
        settings.verify_steps,
        settings.guidance,
        settings.verify_batch,
    )
    of_guide, of_judge = guide.image_features(originals.pictures), judge.image_features(originals.pictures)
    seeds = [seed_for(settings.verify_seed, key, 0) for key in originals.keys]
    outcomes, made = [], {}
    for kind, prompts in kinds.items():
        made[kind] = generator.images(prompts, seeds)
        similarities = [s for s in picture_similarities(judge, of_judge, made[kind]) if s is not None]
        seen = {}
        if originals.told is not None:
            there = [(picture, told) for picture, told in zip(made[kind], originals.told, strict=True) if picture]
            features = judge.image_features([picture for picture, _ in there])
            seen = {name: named(judge.model, features, [told for _, told in there], name) for name in scenes.VALUES}
        outcomes.append(
            Outcome(
                kind,
                mean_of((guide.text_features(prompts) * of_guide).sum(-1).tolist()),
                mean_of((judge.text_features(prompts) * of_judge).sum(-1).tolist()),
                mean_of(similarities),
                seen,
            )
        )
    return outcomes, made


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and interval; not a number where there is no value."""
    found = torch.tensor(values, dtype=torch.float64)
    half = 1.96 * float(found.std()) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return Mean(float(found.mean()), half)


def outcome_table(outcomes: Sequence[Outcome]) -> Table:
    """For people."""
    table = Table(box=None, pad_edge=False)
    for column in ("prompts", "similarity", "under the score model", "regenerated"):
        table.add_column(column, justify="left" if column == "prompts" else "right")
    attributes = list(outcomes[0].named)
    for name in attributes:
        table.add_column(name.replace("_", " "), justify="right")
    for o in outcomes:
        table.add_row(
            o.prompts, str(o.guide), str(o.judge), str(o.regenerated), *(f"{o.named[n]:.0%}" for n in attributes)
        )
    return table


def grid(rows: Sequence[Sequence[Image.Image | None]], count: int, side: int = 96, gap: int = 6) -> Image.Image:
    """The first pictures of each row, one row above the other; a picture that is not there stays white."""
    count = min(count, len(rows[0]))
    sheet = Image.new("RGB", (count * (side + gap) - gap, len(rows) * (side + gap) - gap), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row[:count]):
            if picture is not None:
                sheet.paste(
                    picture.resize((side, side), Image.Resampling.BICUBIC), (x * (side + gap), y * (side + gap))
                )
    return sheet


if __name__ == "__main__":
    command.run(EvaluateJob, __doc__, evaluate)
