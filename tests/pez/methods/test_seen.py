"""The best distinct prompts of an image, kept beside the one that is learned."""

import dataclasses

import pytest
import torch

import pez
from pez.methods.seen import SeenPrompts


def test_the_best_distinct_prompts_of_each_lane_are_kept() -> None:
    settings = pez.PezSettings(tokens=2, candidates_kept=2)
    generator = torch.Generator().manual_seed(0)
    seen = SeenPrompts(3, settings, torch.device("cpu"))
    expected: list[dict[tuple[int, ...], float]] = [{}, {}, {}]
    for _ in range(5):
        ids = torch.randint(4, (3, 6, 2), generator=generator)
        score = (ids[..., 0] * 10 + ids[..., 1]).float()  # equal prompts have equal scores
        seen.add(slice(3), ids, score)
        for lane in range(3):
            expected[lane].update(
                {tuple(row): value for row, value in zip(ids[lane].tolist(), score[lane].tolist(), strict=True)}
            )
    for lane in range(3):
        ids, score = seen.of(lane)
        best = sorted(expected[lane].items(), key=lambda pair: -pair[1])[: 4 * settings.candidates_kept]
        assert [(tuple(row), value) for row, value in zip(ids.tolist(), score.tolist(), strict=True)] == best


def test_alternatives_are_distinct_texts_and_the_learned_prompt_is_the_first(demo_clip: pez.Clip, images: list) -> None:
    settings = pez.PezSettings(tokens=6, steps=30, swaps=6)
    alone = pez.learn_prompts(demo_clip, images[:3], settings)
    found = pez.learn_prompts(demo_clip, images[:3], dataclasses.replace(settings, candidates_kept=4))
    features = demo_clip.image_features(images[:3])
    for before, prompt, feature in zip(alone, found, features, strict=True):
        assert dataclasses.replace(prompt, alternatives=()) == before
        first, *others = prompt.alternatives
        assert first == before
        assert len({each.text for each in prompt.alternatives}) == 4
        similarities = [each.similarity for each in others]
        assert similarities == sorted(similarities, reverse=True)
        of_texts = demo_clip.text_features([each.text for each in others]) @ feature
        assert similarities == pytest.approx(of_texts.tolist(), abs=1e-6)
        assert min(similarities) > before.similarity - 0.05  # not any prompts
    # Alone, an image has the same alternatives.
    assert pez.learn_prompts(demo_clip, images[1:2], dataclasses.replace(settings, candidates_kept=4)) == found[1:2]


def test_a_better_prompt_that_was_scored_is_kept(demo_clip: pez.Clip, images: list) -> None:
    """The walk alone: its best prompts by score, in the order of their scores."""
    scored: dict[tuple[int, ...], float] = {}

    def look(step: object) -> None:
        scored.update(
            {tuple(ids): score for ids, score in zip(step.token_ids.tolist(), step.score.tolist(), strict=True)}  # type: ignore[attr-defined]
        )

    settings = pez.PezSettings(tokens=4, steps=25, swaps=0, candidates_kept=3)
    [prompt] = pez.learn_prompts(demo_clip, images[:1], settings, on_step=look)
    best = sorted(scored, key=lambda ids: -scored[ids])[:3]
    assert [each.token_ids for each in prompt.alternatives] == best


@pytest.mark.parametrize("wrong", [{"candidates_kept": 0}, {"candidates_kept": 65}, {"method": "gcg"}])
def test_what_cannot_be_kept_is_refused(wrong: dict) -> None:
    with pytest.raises(pez.UserError, match="candidates_kept is .*; expected"):
        pez.PezSettings(**{"candidates_kept": 2, **wrong})
