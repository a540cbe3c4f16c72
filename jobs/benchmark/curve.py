"""Score against steps and seconds, for `jobs.benchmark --curve`: baseline, engine exact, engine default.

All three learn prompts for the same held-out scenes; the first two start at the same random tokens. The score is the
similarity of the re-tokenized text under the guide and, for the demo, under the judge.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import pez
from pez import cost
from pez.demo import scenes
from pez.engine import Engine
from pez.methods.phase import OnStep, round_up_to_16
from pez.methods.published import learn_as_published
from pez.models.clip import Clip
from pez.models.token_features import TokenFeatures
from pez.objectives.clip import ClipObjective
from pez.seeds import generator_for
from pez.tasks import Step, Task
from pez.vocabulary import Vocabulary

CHECKPOINTS = (10, 20, 50, 100, 200, 300, 500, 1000, 2000, 3000)


@dataclasses.dataclass(frozen=True)
class Point:
    """A method after a number of steps, over all scenes."""

    method: str
    steps: int
    """gradient steps, of all searches"""
    similarity: float
    interval: float
    """half-width of the 95% interval of the mean"""
    judged: float | None
    """similarity under the judge"""
    judged_interval: float | None
    seconds: float
    """per image"""
    gflop: float
    """per image, counted"""
    images: int


@dataclasses.dataclass(frozen=True)
class Gain:
    """The gain of the default's last point over the exact mode's last, scene by scene."""

    similarity: float
    """mean of the differences under the guide"""
    interval: float
    """half-width of the 95% interval of that mean; smaller than for the two scores, as scenes differ more than methods"""
    judged: float | None
    judged_interval: float | None


def curves(
    clip: Clip,
    judge: Clip | None,
    settings: pez.PezSettings,
    images: int,
    baseline_steps: int,
    exact_steps: int,
    say: Callable[[str], None],
) -> tuple[list[Point], Gain]:
    """Measure the three methods.

    Args:
        settings: of the default method. Points of fewer steps are one search; the last point is that of the settings.
        baseline_steps: steps of the baseline, which learns one prompt after another.
        exact_steps: steps of the engine's exact mode, which learns all prompts at once.
    """
    originals = [Image.fromarray(scenes.render(s)) for s in scenes.held_out_scenes(images)]
    measure = _Measure(clip, judge, originals, settings, say)
    say(f"{'method':10s}{'steps':>7s}{'similarity':>18s}{'judge':>18s}{'s/image':>10s}{'GFLOP':>9s}")
    if clip.device.type != "cpu":
        measure.warm_up()
    measure.baseline(baseline_steps)
    measure.exact(exact_steps)
    one = dataclasses.replace(settings, restarts=1)
    for steps in CHECKPOINTS:
        if steps < settings.gradient_steps:
            measure.default(dataclasses.replace(one, steps=steps))
    measure.default(settings)
    return measure.points, measure.gain()


class _Measure:
    def __init__(
        self,
        clip: Clip,
        judge: Clip | None,
        images: list[Image.Image],
        settings: pez.PezSettings,
        say: Callable[[str], None],
    ) -> None:
        self.clip, self.settings, self.say = clip, settings, say
        self.models = [clip] if judge is None else [clip, judge]
        self.features = [model.image_features(images) for model in self.models]
        # The default uses the allowed tokens that survive decoding and re-encoding; the other two use all allowed tokens.
        self.plain, self.vocabulary = (
            clip.vocabulary(dataclasses.replace(settings, method=method)) for method in ("pez", "default")
        )
        self.lanes = round_up_to_16(len(images))
        self.encoder = clip.encoder(settings.tokens)
        self.points: list[Point] = []
        self.scores: list[list[Tensor]] = []  # for each point and model: (scenes,)

    def tasks(self) -> list[Task]:
        return [Task(f"{i}", target, handle=i) for i, target in enumerate(self.features[0])]

    def warm_up(self) -> None:
        """Load kernels and compile, so that no method's time includes it."""
        self.learn(self.vocabulary, dataclasses.replace(self.settings, steps=1, method="default"))

    def learn(
        self,
        vocabulary: Vocabulary,
        settings: pez.PezSettings,
        on_step: OnStep | None = None,
        alone: TokenFeatures | None = None,
    ) -> dict[int, Tensor]:
        """(tokens,) int64 ids by scene number, all learned at once."""
        engine = Engine(ClipObjective(self.encoder, alone), vocabulary, settings, self.lanes, on_step)
        return {each.task.handle: each.token_ids for finished in engine.run(self.tasks()) for each in finished}

    def baseline(self, steps: int) -> None:
        """One prompt after another, as published."""
        marks = _checkpoints(steps)
        seen = {s: (torch.empty(0), 0.0) for s in marks}
        found: dict[int, list[Tensor]] = {s: [] for s in marks}
        seconds = dict.fromkeys(marks, 0.0)
        settings = dataclasses.replace(self.settings, steps=steps)
        published = self.plain if self.settings.vocabulary != "full" else None
        for i, target in enumerate(self.features[0]):
            best: list[Any] = [-1.0, None, 0]
            start = time.perf_counter()

            def look(ids: Tensor, score: float, best: list[Any] = best, start: float = start) -> None:
                best[2] += 1
                if score > best[0]:
                    best[:2] = score, ids
                if best[2] in seen:
                    found[best[2]].append(best[1])
                    seconds[best[2]] += time.perf_counter() - start

            first = self.plain.random_ids(settings.tokens, generator_for(settings.seed, f"{i}", 0))
            learn_as_published(self.clip, target, first, settings, look, published)
        flop = cost.baseline_step_flop(self.clip, settings.tokens)
        for s in marks:
            self._add("baseline", s, torch.stack(found[s]), seconds[s], s * flop)

    def exact(self, steps: int) -> None:
        """The same algorithm on the engine, all prompts at once."""
        settings = dataclasses.replace(self.settings, steps=steps, method="pez")
        flop = cost.engine_step_flop(self.clip, settings.tokens, self.plain.allowed)
        marks, taken, start = _checkpoints(steps), 0, time.perf_counter()

        def look(step: Step) -> None:
            nonlocal taken, start
            taken += 1
            if taken in marks:
                ids = step.best_ids.cpu()  # waits for the device
                elapsed = time.perf_counter() - start
                self._add("exact", taken, ids, elapsed, taken * flop)
                start = time.perf_counter() - elapsed

        self.learn(self.plain, settings, look)

    def default(self, settings: pez.PezSettings) -> None:
        """A few gradient steps, then swaps."""
        settings = settings.for_vocabulary(len(self.vocabulary.ids))
        # New ones for each measurement: what they cost is shared by the scenes, and not by the measurements.
        alone = TokenFeatures(self.clip.encoder(1), self.clip.tower.token_embedding.weight, self.clip.full)
        start = time.perf_counter()
        ids = self.learn(self.vocabulary, settings, alone=alone)
        seconds = time.perf_counter() - start
        flop = cost.method_flop(self.clip, settings, self.vocabulary)
        flop += alone.count / len(ids) * cost.token_flop(self.clip)
        steps = settings.searches * settings.gradient_steps
        self._add("default", steps, torch.stack([ids[i] for i in range(len(ids))]), seconds, flop)

    def gain(self) -> Gain:
        """Compare the last default point with the last exact one."""
        last = {point.method: scores for point, scores in zip(self.points, self.scores, strict=True)}
        pairs = zip(last["default"], last["exact"], strict=True)
        (mean, half), *judged = [_mean_and_interval(ours - theirs) for ours, theirs in pairs]
        return Gain(mean, half, *(judged[0] if judged else (None, None)))

    def _add(self, method: str, steps: int, ids: Tensor, seconds: float, flop: float) -> None:
        texts = [self.clip.text_of(row) for row in ids.tolist()]
        scores = [
            (model.text_features(texts) * features).sum(-1)
            for model, features in zip(self.models, self.features, strict=True)
        ]
        scored = [_mean_and_interval(similarity) for similarity in scores]
        (mean, half), (judged, judged_half) = scored[0], scored[1] if len(scored) > 1 else (None, None)
        count = len(texts)
        point = Point(method, steps, mean, half, judged, judged_half, seconds / count, flop / 1e9, count)
        self.points.append(point)
        self.scores.append(scores)
        columns = [f"{mean:.4f} +- {half:.4f}" for mean, half in scored]
        self.say(
            f"{method:10s}{steps:7d}{columns[0]:>18s}{(columns[1] if len(columns) > 1 else ''):>18s}"
            f"{point.seconds:10.4f}{point.gflop:9.2f}"
        )


def _checkpoints(steps: int) -> list[int]:
    return [*(s for s in CHECKPOINTS if s < steps), steps]


def _mean_and_interval(values: Tensor) -> tuple[float, float]:
    """The mean and the half-width of its 95% interval."""
    return float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5


def plot_curves(points: list[Point], path: Path) -> None:
    """Draw similarity against seconds and against counted operations.

    The baseline learns one prompt after another, so it rarely gets far. Beyond its last step, a dashed line shows the scores of
    the exact mode, which takes the same steps, at the baseline's seconds and operations per step.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, constrained_layout=True)
    baseline, exact, default = ([p for p in points if p.method == name] for name in ("baseline", "exact", "default"))
    further = [p for p in exact if p.steps >= baseline[-1].steps]
    for axis, value, label in zip(axes, ("seconds", "gflop"), ("seconds per image", "GFLOP per image"), strict=True):
        each = getattr(baseline[-1], value) / baseline[-1].steps
        lines = [
            ("as published", "#777777", "o-", baseline, [getattr(p, value) for p in baseline]),
            ("as published, score of the exact mode", "#777777", "--", further, [p.steps * each for p in further]),
            ("engine, exact mode: the same algorithm", "#1f77b4", "o-", exact, [getattr(p, value) for p in exact]),
            ("engine, default", "#d62728", "o-", default, [getattr(p, value) for p in default]),
        ]
        for name, color, style, line, x in lines:
            axis.plot(x, [p.similarity for p in line], style, color=color, label=name, markersize=4)
            low, high = [p.similarity - p.interval for p in line], [p.similarity + p.interval for p in line]
            axis.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
        axis.set(xscale="log", xlabel=label, ylim=(0.75, None))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("similarity of the text")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)
