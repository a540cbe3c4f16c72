"""Of an image's searches, the best after the gradient steps go on to the swaps."""

import dataclasses

import pytest
import torch
from PIL import Image
from torch import Tensor

import pez
from pez.engine import Engine
from pez.learn import engine_for
from pez.objectives.clip import ClipObjective
from pez.seeds import generator_for
from pez.tasks import Learned, Task

SETTINGS = pez.PezSettings(tokens=4, steps=10, swaps=4)


def learned(clip: pez.Clip, tasks: list[Task], lanes: int, settings: pez.PezSettings) -> dict[str, Learned]:
    return {one.task.key: one for finished in engine_for(clip, settings, lanes).run(tasks) for one in finished}


def same(one: Learned, other: Learned) -> bool:
    return torch.equal(one.token_ids, other.token_ids) and one.score == other.score


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_only_the_best_walks_are_swapped(demo_clip: pez.Clip, images: list[Image.Image], weight: float) -> None:
    """By their scores and the weighted scores of their tokens; the result is the best prompt of the finalists."""
    tasks = [Task(f"{i}", t) for i, t in enumerate(demo_clip.image_features(images[:8]))]
    settings = dataclasses.replace(SETTINGS, token_weight=weight, candidates_kept=5)
    alone = demo_clip.single_tokens()
    vocabulary = demo_clip.vocabulary(settings)

    def each(settings: pez.PezSettings) -> list[dict[str, Learned]]:
        found = []
        for restart in range(4):
            starts = [vocabulary.random_ids(4, generator_for(0, t.key, restart)) for t in tasks]
            started = [dataclasses.replace(task, initial_ids=ids) for task, ids in zip(tasks, starts, strict=True)]
            found.append(learned(demo_clip, started, 16, settings))
        return found

    walks, whole = each(dataclasses.replace(settings, swaps=0)), each(settings)
    chosen = dataclasses.replace(settings, restarts=4, finalists=2)
    found, other = (learned(demo_clip, tasks, lanes, chosen) for lanes in (16, 64))
    for task in tasks:
        key = task.key
        values = [walk[key].score + weight * float((alone(walk[key].token_ids) @ task.target).mean()) for walk in walks]
        finalists = sorted(range(4), key=lambda i: -values[i])[:2]
        best = max((whole[i][key] for i in finalists), key=lambda one: one.score)
        assert same(found[key], best)
        assert same(found[key], other[key])
        assert found[key].steps == 4 * 10
        seen, of_a_loser = found[key].seen, walks[min(range(4), key=lambda i: values[i])][key]
        assert seen is not None
        assert of_a_loser.score <= seen[1].max(), "prompts of the others are kept too"
        assert len(seen[1]) > 5


class Narrow(ClipObjective):
    """Has too little memory for single tokens, the first few times."""

    def __init__(self, clip: pez.Clip, failures: int) -> None:
        super().__init__(clip.encoder(4), clip.single_tokens())
        self.failures = failures

    def score_tokens(self, ids: Tensor, batch: Tensor) -> Tensor:
        if self.failures:
            self.failures -= 1
            raise torch.OutOfMemoryError("no room")
        return super().score_tokens(ids, batch)


def test_a_choice_without_memory_is_made_with_fewer_lanes(demo_clip: pez.Clip, images: list[Image.Image]) -> None:
    tasks = [Task(f"{i}", t) for i, t in enumerate(demo_clip.image_features(images[:6]))]
    settings = dataclasses.replace(SETTINGS, restarts=12, finalists=1, token_weight=0.5)
    whole = learned(demo_clip, tasks, 64, settings)
    engine = Engine(Narrow(demo_clip, 2), demo_clip.vocabulary(settings), settings, 64)
    with pytest.warns(UserWarning, match="out of memory with 64 lanes; continuing with 32"):
        found = {one.task.key: one for finished in engine.run(tasks) for one in finished}
    assert set(found) == set(whole)
    assert all(same(found[key], whole[key]) and found[key].steps == 120 for key in whole)

    engine = Engine(Narrow(demo_clip, 9), demo_clip.vocabulary(settings), settings, 64)
    with pytest.warns(UserWarning, match="continuing with 16"), pytest.raises(torch.OutOfMemoryError):
        list(engine.run(tasks))
    assert (engine.learning, engine.busy) == (6, True), "nothing is lost"
