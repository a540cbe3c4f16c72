"""Generate images from prompts, score them and show the results, for `jobs.evaluate`."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.settings import GeneratorSettings
from pipeline.terminal import Activity

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console, ConsoleOptions, RenderResult

    import pez
    from pez.demo.scenes import Scene
    from pez.models.clip import Clip
    from pez.models.joint import AnyClip
    from pez.regeneration import Generator


_GAP = 2  # columns between two columns of a table


@dataclasses.dataclass(frozen=True)
class Originals:
    """The images of an evaluation."""

    keys: list[str]
    images: list[Image.Image]
    captions: list[str] | None
    """None unless every image has one"""
    scenes: list[Scene] | None = None
    """for drawn scenes only"""


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean and the half-width of its 95% interval."""

    mean: float | None
    """None if there are no values"""
    interval: float | None
    """None if there are fewer than two values"""

    def __str__(self) -> str:
        if self.mean is None:
            return "none"
        return f"{self.mean:.3f}" if self.interval is None else f"{self.mean:.3f} ± {self.interval:.3f}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The scores of one kind of prompt."""

    prompts: str
    guide: Mean
    """similarity of prompt and original under the guide"""
    judge: Mean
    """the same under the judge"""
    others: dict[str, Mean]
    """the same under further judges, by name"""
    regenerated: Mean
    """similarity of generated images and originals under the judge"""
    blanked: int
    """images that the safety checker blanked"""
    named: dict[str, float]
    """for drawn scenes: share of generated images that show the original's attribute, according to the judge"""
    perplexity: float | None = None
    """mean of the prompts under the bigram model of a fluency text, if there is one"""


def random_prompts(guide: AnyClip, method: pez.PezSettings, keys: Sequence[str]) -> list[str]:
    """Prompts of random tokens, with the length and the vocabulary of the learned ones."""
    from pez.seeds import generator_for
    from pez.template import template_of

    vocabulary, template = guide.vocabulary(method), template_of(method)
    seeds = [generator_for(method.seed, key, 0) for key in keys]
    return [template.around(guide.text_of(vocabulary.random_ids(method.tokens, seed).tolist())) for seed in seeds]


def regenerate(
    settings: GeneratorSettings,
    guide: AnyClip,
    judge: Clip,
    generator: Generator,
    originals: Originals,
    kinds: dict[str, list[str]],
    activity: Activity,
    others: Sequence[Clip] = (),
) -> tuple[list[Outcome], dict[str, list[Image.Image | None]]]:
    """Score each kind of prompt and the images that the generator makes from it.

    Args:
        others: further judges, of texts only.

    Returns:
        the scores of each kind, and its images: `verify_images` per prompt, prompt by prompt.
    """
    from pez.demo.evaluation import attribute_accuracy
    from pez.demo.scenes import VALUES
    from pez.regeneration import image_similarities, seed_for

    times = settings.verify_images
    of_guide, of_judge = guide.image_features(originals.images), judge.image_features(originals.images)
    of_others = [other.image_features(originals.images) for other in others]
    seeds = [seed_for(settings.verify_seed, key, n) for key in originals.keys for n in range(times)]
    outcomes, made = [], {}
    for kind, prompts in kinds.items():
        repeated = [prompt for prompt in prompts for _ in range(times)]
        made[kind] = generated(generator.images, repeated, seeds, settings.verify_batch, kind, activity)
        similarities = image_similarities(judge, of_judge.repeat_interleave(times, 0), made[kind])
        seen = {}
        if originals.scenes is not None:
            repeated_scenes = [scene for scene in originals.scenes for _ in range(times)]
            there = [(image, scene) for image, scene in zip(made[kind], repeated_scenes, strict=True) if image]
            if there:
                features = judge.image_features([image for image, _ in there])
                seen = {
                    name: attribute_accuracy(judge.model, features, [scene for _, scene in there], name)
                    for name in VALUES
                }
        outcomes.append(
            Outcome(
                kind,
                mean_of((guide.text_features(prompts) * of_guide).sum(-1).tolist()),
                mean_of((judge.text_features(prompts) * of_judge).sum(-1).tolist()),
                {
                    other.name: mean_of((other.text_features(prompts) * features).sum(-1).tolist())
                    for other, features in zip(others, of_others, strict=True)
                },
                mean_of([value for value in by_prompt(similarities, times) if value is not None]),
                sum(image is None for image in made[kind]),
                seen,
            )
        )
    return outcomes, made


def with_perplexity(
    outcomes: Sequence[Outcome], guide: AnyClip, method: pez.PezSettings, kinds: dict[str, list[str]]
) -> list[Outcome]:
    """The scores with the mean perplexity of each kind of prompt."""
    from pez.fluency import Texts, bigrams_of

    model = bigrams_of(guide.tokens, Texts(method.fluency_text))
    found = []
    for outcome in outcomes:
        values = (model.perplexity(ids) for ids in guide.tokens.read(kinds[outcome.prompts]))
        mean = mean_of([value for value in values if value is not None]).mean
        found.append(dataclasses.replace(outcome, perplexity=mean))
    return found


def by_prompt(similarities: Sequence[float | None], times: int) -> list[float | None]:
    """The mean over each prompt's images; missing ones are skipped, and a prompt without images has None."""
    groups = [similarities[i : i + times] for i in range(0, len(similarities), times)]
    there = [[value for value in group if value is not None] for group in groups]
    return [sum(values) / len(values) if values else None for values in there]


def generated(
    generate: Callable[[Sequence[str], Sequence[int]], list[Image.Image | None]],
    prompts: list[str],
    seeds: list[int],
    batch: int,
    kind: str,
    activity: Activity,
) -> list[Image.Image | None]:
    """Generate images batch by batch and show the progress."""
    made: list[Image.Image | None] = []
    done = activity.counted(f"generating from {kind} prompts", -(-len(prompts) // batch))
    for i in range(0, len(prompts), batch):
        made += generate(prompts[i : i + batch], seeds[i : i + batch])
        done()
    return made


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and interval of the values."""
    if not values:
        return Mean(None, None)
    return Mean(
        statistics.fmean(values), 1.96 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    )


def outcome_tables(outcomes: Sequence[Outcome]) -> Iterator[FiguresTable]:
    """The results for people: similarities, and for drawn scenes what the images show; one table would be too wide."""
    measured = any(o.perplexity is not None for o in outcomes)
    others = (f"under {name}" for name in outcomes[0].others)
    more = ("perplexity",) if measured else ()
    rows = [(o.prompts, *map(str, (o.guide, o.judge, *o.others.values(), o.regenerated))) for o in outcomes]
    if measured:
        rows = [(*row, f"{o.perplexity or 0.0:.1f}") for row, o in zip(rows, outcomes, strict=True)]
    yield table(("prompts", "similarity", "under the judge", *others, "regenerated", *more), rows)
    if attributes := list(dict.fromkeys(name for o in outcomes for name in o.named)):
        shares = [(o.prompts, *(f"{o.named[n]:.0%}" if n in o.named else "" for n in attributes)) for o in outcomes]
        yield table(("shown in", *(name.replace("_", " ") for name in attributes)), shares)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> FiguresTable:
    """A table whose headings may wrap but whose numbers may not."""
    return FiguresTable(columns, rows)


@dataclasses.dataclass(frozen=True)
class FiguresTable:
    """Names and figures. What does not fit the width of the console follows below, with the names again."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table

        widths = [
            max(*(len(row[i]) for row in self.rows), *map(len, name.split())) for i, name in enumerate(self.columns)
        ]
        blocks: list[list[int]] = [[0]]
        for i in range(1, len(self.columns)):
            used = sum(widths[j] + _GAP for j in blocks[-1])
            if len(blocks[-1]) > 1 and used + widths[i] > options.max_width:
                blocks.append([0])
            blocks[-1].append(i)
        for shown in blocks:
            table = Table(box=None, pad_edge=False)
            for i in shown:
                table.add_column(self.columns[i], justify="right" if i else "left", min_width=widths[i])
            for row in self.rows:
                table.add_row(*(row[i] for i in shown))
            yield table


def grid(rows: Sequence[Sequence[Image.Image | None]], count: int, side: int = 96, gap: int = 6) -> Image.Image:
    """A grid of the first images of each row; a missing image is white."""
    from PIL import Image

    count = min(count, len(rows[0]))
    sheet = Image.new("RGB", (count * (side + gap) - gap, len(rows) * (side + gap) - gap), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row[:count]):
            if image is not None:
                sheet.paste(image.resize((side, side), Image.Resampling.BICUBIC), (x * (side + gap), y * (side + gap)))
    return sheet
