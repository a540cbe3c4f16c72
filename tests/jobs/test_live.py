"""The prompts that people see while they are learned lead to those that they get."""

import dataclasses
import math

import pytest
import torch
from PIL import Image

import pez
from jobs.live import BestPrompts
from jobs.trial import learn_live
from pez.tasks import Step

SETTINGS = pez.PezSettings(tokens=4, steps=20, swaps=2, restarts=4, token_weight=2.0)


@pytest.mark.parametrize("finalists", [1, 2, 4])
def test_what_is_shown_last_is_the_result(demo_clip: pez.Clip, images: list[Image.Image], finalists: int) -> None:
    settings = dataclasses.replace(SETTINGS, finalists=finalists)
    best, highest = BestPrompts(settings), [-math.inf] * 8

    def on_step(step: Step) -> None:
        best.add(step)
        for task, score in zip(step.tasks, step.best_score.tolist(), strict=True):
            highest[task.handle] = max(highest[task.handle], score)

    prompts = pez.learn_prompts(demo_clip, images[:8], settings, on_step=on_step)
    assert [tuple(ids) for _, _, ids, _ in best] == [prompt.token_ids for prompt in prompts]
    results = torch.tensor([score for _, score, _, _ in best])
    if finalists == 1:  # the chosen walk is not always the one with the highest similarity, or this shows nothing
        assert (results < torch.tensor(highest)).any()
    if finalists == 4:
        assert results.tolist() == pytest.approx(highest)


def test_the_page_shows_the_best_so_far(demo_clip: pez.Clip, images: list[Image.Image]) -> None:
    settings = dataclasses.replace(SETTINGS, finalists=1)
    *shown, last = learn_live(demo_clip, images[:2], ["a", "b"], settings, together=False)
    walks = [update for update in shown if update.step <= SETTINGS.steps]  # type: ignore[operator]
    for name in (0, 1):
        similarities = [update.rows[name][2] for update in walks]
        assert similarities == sorted(similarities)
    assert last.done
    assert [name for name, _, _ in last.rows] == ["a", "b"]
