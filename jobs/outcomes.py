"""What a generator makes of prompts, scored and shown, for `jobs.evaluate`."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.settings import PaintSettings
from pipeline.terminal import Activity

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table

    import pez
    from pez.demo.scenes import Scene
    from pez.models.clip import Clip
    from pez.regeneration import Generator


@dataclasses.dataclass(frozen=True)
class Originals:
    """What is evaluated on."""

    keys: list[str]
    pictures: list[Image.Image]
    captions: list[str] | None
    """None unless every image has one"""
    scenes: list[Scene] | None = None
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
    from pez.demo.evaluation import named
    from pez.demo.scenes import VALUES
    from pez.regeneration import picture_similarities, seed_for

    times = settings.verify_images
    of_guide, of_judge = guide.image_features(originals.pictures), judge.image_features(originals.pictures)
    seeds = [seed_for(settings.verify_seed, key, n) for key in originals.keys for n in range(times)]
    outcomes, made = [], {}
    for kind, prompts in kinds.items():
        repeated = [prompt for prompt in prompts for _ in range(times)]
        made[kind] = _generated(generator.images, repeated, seeds, settings.verify_batch, kind, activity)
        similarities = picture_similarities(judge, of_judge.repeat_interleave(times, 0), made[kind])
        seen = {}
        if originals.scenes is not None:
            repeated_scenes = [scene for scene in originals.scenes for _ in range(times)]
            there = [(picture, scene) for picture, scene in zip(made[kind], repeated_scenes, strict=True) if picture]
            if there:
                features = judge.image_features([picture for picture, _ in there])
                seen = {name: named(judge.model, features, [scene for _, scene in there], name) for name in VALUES}
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


def _generated(
    generate: Callable[[Sequence[str], Sequence[int]], list[Image.Image | None]],
    prompts: list[str],
    seeds: list[int],
    batch: int,
    kind: str,
    activity: Activity,
) -> list[Image.Image | None]:
    """Images of prompts, batch after batch, with the progress shown."""
    made: list[Image.Image | None] = []
    done = activity.counted(f"generating from {kind} prompts", -(-len(prompts) // batch))
    for i in range(0, len(prompts), batch):
        made += generate(prompts[i : i + batch], seeds[i : i + batch])
        done()
    return made


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
