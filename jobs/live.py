"""Show prompts on the terminal while they are learned."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pez
from pez.settings import lanes_for
from pipeline.terminal import Column, FittedTable, plain, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from pez.models.joint import AnyClip
    from pez.tasks import Step, Task


class BestPrompts:
    """The best prompt of each target so far, by the handles of their tasks.

    Once a target's finalists get swaps, only they count: they need not have the highest similarity of its searches. Of a single
    one the latest prompt counts, because swaps also weigh the tokens' own similarity.
    """

    def __init__(self, settings: pez.PezSettings) -> None:
        self._finalists = settings.improved
        self._chosen = self._finalists < settings.searches
        self._best: dict[int, tuple[float, list[int], Task]] = {}
        self._swapped: set[int] = set()

    def add(self, step: Step) -> None:
        """Take the prompts of a step into account."""
        for task, score, ids in zip(step.tasks, step.best_score.tolist(), step.best_ids.tolist(), strict=True):
            first = self._chosen and task.handle not in self._swapped
            replaces = step.swapped and (first or self._finalists == 1)
            if replaces or score > self._best.get(task.handle, (-math.inf,))[0]:
                self._best[task.handle] = (score, ids, task)
            if step.swapped:
                self._swapped.add(task.handle)

    def __iter__(self) -> Iterator[tuple[int, float, list[int], Task]]:
        """Handle, score, token ids and task, by handle."""
        for handle, (score, ids, task) in sorted(self._best.items()):
            yield handle, score, ids, task


class LivePrompts:
    """The best prompts so far: a live table in a terminal, otherwise a line per changed prompt every tenth of the way.

    Args:
        names: of the targets, in the order of their handles.
        noun: what a target is called.
    """

    def __init__(
        self, clip: AnyClip, names: list[str], method: pez.PezSettings, console: Console, noun: str = "image"
    ) -> None:
        from rich.live import Live

        from pez.learn import settings_for
        from pez.template import template_of

        self.clip, self.names, self.console, self.noun = clip, names, console, noun
        self.template = template_of(method)
        settings = settings_for(clip, method)
        self.steps = settings.steps_for(len(names), lanes_for(clip.device.type))
        self.taken = 0
        self.best = BestPrompts(settings)
        self.shown: dict[int, float] = {}
        self.live = Live(console=console, refresh_per_second=8, transient=True) if console.is_terminal else None

    def __enter__(self) -> LivePrompts:
        if self.live:
            self.live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.__exit__(None, None, None)

    def step(self, step: Step) -> None:
        self.taken += 1
        self.best.add(step)
        every = 10 if self.live else max(1, self.steps // 10)
        if self.taken % every and self.taken not in (1, self.steps):
            return
        title = f"step {self.taken} of {self.steps}"
        best = {i: (self.names[i], self._text_of(ids), score) for i, score, ids, _ in self.best}
        if self.live:
            self.live.update(self.table(list(best.values()), f"best so far, {title}"))
            return
        for i, (name, text, score) in best.items():
            if score != self.shown.get(i):
                self.shown[i] = score
                say(self.console, plain(f"{title}  {score:.3f}  {name}: {text}"))

    def best_prompts(self) -> list[tuple[str, str, float]]:
        """Name, text and similarity of the text for each target that already has a prompt."""
        import torch

        kept = [(self.names[i], self._text_of(ids), task.target) for i, _, ids, task in self.best]
        if not kept:
            return []
        features = self.clip.text_features([text for _, text, _ in kept])
        similarities = (features * torch.stack([target for *_, target in kept])).sum(-1).tolist()
        return [(name, text, similarity) for (name, text, _), similarity in zip(kept, similarities, strict=True)]

    def _text_of(self, ids: list[int]) -> str:
        return self.template.around(self.clip.text_of(ids))

    def table(self, rows: list[tuple[str, str, float]], title: str) -> FittedTable:
        """Name, prompt and similarity of each target."""
        cells = [[name, prompt, f"{similarity:.3f}"] for name, prompt, similarity in rows]
        return FittedTable([Column(self.noun, "name"), Column(title), Column("similarity", "number")], cells)
