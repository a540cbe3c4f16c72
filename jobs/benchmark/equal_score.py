"""Images per hour at equal score, for `jobs.benchmark --equal-score`: the default method over the published algorithm.

1. The scores of the published algorithm after all its steps come from the engine's exact mode, which takes the same steps
   (tests replay them) for all images at once. Its state is saved from time to time, if a file is given, and continued.
2. Its seconds per image are those of a step as published, measured here, times the number of steps.
3. The default method runs with growing budgets, each in turn with some steps as published, so that a busy machine slows both.
   The first budget whose mean score is not below the published one counts.

The published algorithm is scored by its token ids, since its text may not keep them; the default by its text.
"""

import dataclasses
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import pez
from jobs.benchmark.speed import time_baseline
from pez.demo import scenes
from pez.engine import Engine
from pez.errors import UserError
from pez.methods.pez import Walk
from pez.methods.phase import round_up_to_16, started
from pez.models.clip import Clip
from pez.models.token_features import TokenFeatures
from pez.objectives.clip import ClipObjective
from pez.tasks import Task

BUDGETS = ((85, 16), (100, 16), (150, 16), (200, 16), (350, 16), (350, 32), (700, 32))
"""gradient steps and rounds of swaps, by growing cost"""
_SAVE_EVERY = 60.0  # seconds


@dataclasses.dataclass(frozen=True)
class Published:
    """The published algorithm after all its steps."""

    steps: int
    similarity: float
    """of the token ids, mean over the images"""
    interval: float
    """half-width of its 95% interval"""
    text_similarity: float
    """of the re-tokenized text"""
    seconds_per_step: float
    """of one image"""

    @property
    def seconds(self) -> float:
        """Per image."""
        return self.steps * self.seconds_per_step


@dataclasses.dataclass(frozen=True)
class Tried:
    """The default method with one budget."""

    steps: int
    swaps: int
    similarity: float
    """of the text, mean over the images"""
    difference: float
    """from the published algorithm, image by image"""
    interval: float
    """half-width of the 95% interval of that mean"""
    seconds: float
    """per image"""


@dataclasses.dataclass(frozen=True)
class EqualScore:
    """What was measured; `ratio` is None if no budget reached the published score."""

    images: int
    published: Published
    tried: list[Tried]

    @property
    def ratio(self) -> float | None:
        """Images per hour of the first budget that reaches the published score, over those of the published algorithm."""
        reached = self.tried[-1]
        return self.published.seconds / reached.seconds if reached.difference >= 0 else None


def measure_equal_score(
    clip: Clip,
    engine: Clip,
    settings: pez.PezSettings,
    images: int,
    steps: int,
    seconds: float,
    say: Callable[[str], None],
    checkpoint: Path | None = None,
    budgets: Sequence[tuple[int, int]] = BUDGETS,
) -> EqualScore:
    """Find the smallest budget that reaches the published score.

    Args:
        clip: as published, in float32.
        engine: the same model in the precision of the engine.
        settings: of the default method; steps and swaps come from the budgets.
        images: number of held-out scenes.
        steps: of the published algorithm.
        seconds: measuring time of its steps, for each budget.
        checkpoint: file that keeps the state of the exact mode.
    """
    targets = clip.image_features([Image.fromarray(scenes.render(scene)) for scene in scenes.held_out_scenes(images)])
    published = dataclasses.replace(settings, method="pez", vocabulary="full", steps=steps)
    ids = learn_exactly(engine, targets, published, say, checkpoint)
    theirs = (clip.token_features(ids) * targets).sum(-1)
    of_text = (clip.text_features([clip.text_of(row) for row in ids.tolist()]) * targets).sum(-1)
    mean, half = mean_and_interval(theirs)
    say(f"published algorithm, {steps} steps: {mean:.4f} +- {half:.4f} (its text {float(of_text.mean()):.4f})\n")
    say(f"{'default':20s}{'similarity':>12s}{'difference':>20s}{'s/image':>10s}{'ratio':>8s}")
    of_steps: list[float] = []  # seconds of a step as published, one for each budget
    tried: list[Tried] = []
    for walk, swaps in budgets:
        of_steps.append(time_baseline(clip, targets[0], published, seconds).seconds_per_image_step)
        chosen = dataclasses.replace(settings, method="default", steps=walk, swaps=swaps, restarts=1)
        ours, taken = _learn_by_default(engine, targets, chosen)
        mean_difference, half_difference = mean_and_interval(ours - theirs)
        tried.append(Tried(walk, swaps, float(ours.mean()), mean_difference, half_difference, taken))
        budget, difference = f"{walk} + {swaps} rounds", f"{mean_difference:+.4f} +- {half_difference:.4f}"
        ratio = steps * statistics.median(of_steps) / taken
        say(f"{budget:20s}{tried[-1].similarity:12.4f}{difference:>20s}{taken:10.3f}{ratio:8.0f}")
        if mean_difference >= 0:
            break
    step = statistics.median(of_steps)
    return EqualScore(images, Published(steps, mean, half, float(of_text.mean()), step), tried)


def learn_exactly(
    clip: Clip,
    targets: Tensor,
    settings: pez.PezSettings,
    say: Callable[[str], None] = lambda _: None,
    checkpoint: Path | None = None,
    stop_after: float = math.inf,
) -> Tensor:
    """The best ids that the published algorithm visits for each target, (targets, tokens) int64.

    Args:
        settings: with the method pez.
        say: told the time left, once a minute.
        checkpoint: file for the state of all lanes; an earlier state is continued.
        stop_after: seconds after which TimeoutError is raised, with the state saved.

    Raises:
        UserError: the file has the state of other targets or settings.
    """
    vocabulary, lanes = clip.vocabulary(settings), _lanes_for(len(targets))
    walk = Walk(ClipObjective(clip.encoder(settings.tokens)), vocabulary, settings, lanes)
    for i, target in enumerate(targets):
        walk.admit(started(Task(f"{i}", target, handle=i), vocabulary, settings))
    done = 0
    if checkpoint is not None and checkpoint.exists():
        done = _restore(walk, settings, checkpoint)
        say(f"{checkpoint} has {done} of {settings.gradient_steps} steps")
    start = last = time.monotonic()
    first, finished = done, list[Any]()
    while not finished:
        finished = walk.step()
        done, now = done + 1, time.monotonic()
        if finished or now - last > _SAVE_EVERY or now - start > stop_after:
            last = now
            if checkpoint is not None and not finished:
                _save(walk, settings, done, checkpoint)
            left = (now - start) / (done - first) * (settings.gradient_steps - done)
            say(f"exact mode: {done} of {settings.gradient_steps} steps, {left / 60:.1f} min left")
        if not finished and now - start > stop_after:
            raise TimeoutError
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    ids = {learned.task.handle: learned.token_ids for learned in finished}
    return torch.stack([ids[i] for i in range(len(targets))])


_STATE = ("soft", "mean", "square", "count", "best_ids", "best_score")


def _save(walk: Walk, settings: pez.PezSettings, done: int, path: Path) -> None:
    state = {name: getattr(walk, name) for name in _STATE} | {"target": walk.target, "done": done, "of": repr(settings)}
    part = path.with_name(f".{path.name}.part")
    torch.save(state, part)
    os.replace(part, path)


def _restore(walk: Walk, settings: pez.PezSettings, path: Path) -> int:
    """Continue a saved walk; returns its steps."""
    state = torch.load(path, map_location=walk.soft.device, weights_only=True)
    assert walk.target is not None, "its tasks were admitted"
    same = state["target"].shape == walk.target.shape and torch.equal(state["target"], walk.target)
    if not same or state["of"] != repr(settings):
        raise UserError(f"{path} has the state of other images, another model or other settings; remove it")
    for name in _STATE:
        getattr(walk, name).copy_(state[name])
    for lane in walk.started:
        walk.taken[lane] = state["done"]
    return int(state["done"])


def _learn_by_default(clip: Clip, targets: Tensor, settings: pez.PezSettings) -> tuple[Tensor, float]:
    """Similarities of the learned texts, (targets,), and seconds per image."""
    vocabulary = clip.vocabulary(settings)
    # New ones for each budget: what they cost is shared by the images, and not by the budgets.
    alone = TokenFeatures(clip.encoder(1), clip.tower.token_embedding.weight, clip.full)
    start = time.perf_counter()
    engine = Engine(ClipObjective(clip.encoder(settings.tokens), alone), vocabulary, settings, _lanes_for(len(targets)))
    tasks = [Task(f"{i}", target, handle=i) for i, target in enumerate(targets)]
    ids = {learned.task.handle: learned.token_ids for finished in engine.run(tasks) for learned in finished}
    seconds = (time.perf_counter() - start) / len(targets)
    texts = [clip.text_of(ids[i].tolist()) for i in range(len(targets))]
    return (clip.text_features(texts) * targets).sum(-1), seconds


def _lanes_for(images: int) -> int:
    """A multiple of 16, so that results have the bits of any other run; no more lanes than images if there are few."""
    return images if images < 16 else round_up_to_16(images)


def mean_and_interval(values: Tensor) -> tuple[float, float]:
    """The mean and the half-width of its 95% interval."""
    return float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5
