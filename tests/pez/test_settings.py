"""Defaults of the search that depend on the models and on the size of the vocabulary."""

from typing import Any

import pytest
from PIL import Image

import pez
from pez import cost
from pez.learn import engine_for, settings_for

SMALL, LARGE = 61, 256


def search(count: int, **given: Any) -> tuple[int, int, int, float]:
    """Searches, those that are improved, gradient steps of each, and the weight of tokens, with so many tokens."""
    settings = pez.PezSettings(**given).for_vocabulary(count)
    return settings.searches, settings.improved, settings.gradient_steps, settings.weight_of_tokens


@pytest.mark.parametrize(
    ("count", "given", "expected"),
    [
        (SMALL, {}, (2, 2, 96, 0.0)),
        (LARGE, {}, (12, 1, 96, 0.4)),
        (SMALL, {"vocabulary": "full"}, (6, 6, 96, 0.0)),
        (LARGE, {"vocabulary": "full"}, (12, 1, 96, 0.4)),
        (SMALL, {"vocabulary": "full", "allowlist": ("red", "square")}, (2, 2, 96, 0.0)),
        (LARGE - 1, {}, (2, 2, 96, 0.0)),
        (LARGE, {"steps": 20}, (1, 1, 20, 0.4)),
        (SMALL, {"steps": 20}, (1, 1, 20, 0.0)),
        (LARGE, {"restarts": 1}, (1, 1, 350, 0.4)),
        (LARGE, {"restarts": 3}, (3, 1, 96, 0.4)),
        (LARGE, {"restarts": 3, "finalists": 2}, (3, 2, 96, 0.4)),
        (LARGE, {"restarts": 3, "finalists": 9}, (3, 3, 96, 0.4)),
        (SMALL, {"finalists": 1}, (2, 1, 96, 0.0)),
        (LARGE, {"restarts": 3, "steps": 20}, (3, 1, 20, 0.4)),
        (LARGE, {"token_weight": 0.0}, (12, 1, 96, 0.0)),
        (SMALL, {"token_weight": 0.5}, (2, 2, 96, 0.5)),
        (LARGE, {"method": "pez"}, (1, 1, 350, 0.4)),
        (SMALL, {"method": "gcg"}, (1, 1, 350, 0.4)),
    ],
)
def test_the_vocabulary_decides_how_often_an_image_is_searched(
    count: int, given: dict[str, Any], expected: tuple[int, int, int, float]
) -> None:
    assert search(count, **given) == expected


def test_several_models_search_once_and_longer() -> None:
    joint = pez.PezSettings().for_models(2).for_vocabulary(LARGE)
    assert (joint.searches, joint.gradient_steps, joint.rounds) == (1, 350, 32)


def test_the_engine_fills_in_what_the_vocabulary_decides(demo_clip: pez.Clip, images: list[Image.Image]) -> None:
    for given, expected in (
        (pez.PezSettings(), (2, 2, 0.0)),
        (pez.PezSettings(vocabulary="full", untrained_tokens=True), (12, 1, 0.4)),
        (pez.PezSettings(steps=3), (1, 1, 0.0)),
        (pez.PezSettings(vocabulary="full", untrained_tokens=True, restarts=5, token_weight=0.1), (5, 1, 0.1)),
    ):
        found = engine_for(demo_clip, given, 16).settings
        assert (found.searches, found.improved, found.weight_of_tokens) == expected
        assert settings_for(demo_clip, given) == found
        flop = cost.method_flop(demo_clip, given, demo_clip.vocabulary(given))
        assert flop == cost.method_flop(demo_clip, found, demo_clip.vocabulary(given))
    written = pez.PezSettings(restarts=2, steps=96, token_weight=0.0)
    [by_default] = pez.learn_prompts(demo_clip, images[:1], pez.PezSettings())
    assert [by_default] == pez.learn_prompts(demo_clip, images[:1], written)
    assert by_default.steps == 2 * 96, "the steps of both searches"


def test_steps_are_counted_for_all_searches_and_rounds_for_the_improved_ones() -> None:
    settings = pez.PezSettings(restarts=12, finalists=3, steps=100, swaps=16)
    assert settings.total_steps == 12 * 100 + 3 * 16
    assert [settings.swap_lanes(lanes) for lanes in (5, 16, 64, 1024)] == [5, 16, 16, 256], "a quarter"
    assert settings.steps_for(10, 64) == 2 * 100 + 2 * 16, "two lanefuls of searches, two of 16 finalists"
    assert settings.steps_for(64, 64) == settings.total_steps + 9 * 16
    assert pez.PezSettings(method="bank", bank=("a cat",)).total_steps == 1
