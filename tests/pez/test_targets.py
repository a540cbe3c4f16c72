"""Targets beyond one image: weights, negative images, texts, mixtures."""

import pytest
from PIL import Image

import pez

SETTINGS = pez.PezSettings(tokens=6, steps=60, swaps=12)


def test_a_negative_target_lowers_the_similarity_to_it(demo_clip: pez.Clip, images: list[Image.Image]) -> None:
    toward: list[tuple[float, ...]] = []
    away: list[tuple[float, ...]] = []
    for i in range(0, 12, 2):
        pair = images[i : i + 2]
        prompts = [pez.learn_prompt(demo_clip, pair, SETTINGS, weights) for weights in ((1, 0.0001), (1, -0.5))]
        for prompt, found in zip(prompts, (toward, away), strict=True):
            features = demo_clip.image_features(pair) @ demo_clip.text_features([prompt.text])[0]
            assert prompt.target_similarities == pytest.approx(features.tolist(), abs=1e-6)
            found.append(prompt.target_similarities)
        assert prompts[1].similarity == pytest.approx((away[-1][0] - 0.5 * away[-1][1]) / 2, abs=1e-6)
    assert sum(pair[1] for pair in away) / 6 < sum(pair[1] for pair in toward) / 6 - 0.1


def test_a_text_draws_the_prompt_toward_it(demo_clip: pez.Clip, images: list[Image.Image]) -> None:
    text = "a big red star at night"
    alone = pez.learn_prompt(demo_clip, images[0], SETTINGS)
    both = pez.learn_prompt(demo_clip, images[0], SETTINGS, [1, 1], texts=[text])
    features = demo_clip.text_features([alone.text, both.text, text])
    assert both.target_similarities[1] == pytest.approx(float(features[1] @ features[2]), abs=1e-6)
    assert both.target_similarities[1] > float(features[0] @ features[2]) + 0.05
    only = pez.learn_prompt(demo_clip, [], SETTINGS, texts=text)
    assert only.token_ids == pez.distill(demo_clip, text, SETTINGS).token_ids
    assert only.target_similarities == alone.target_similarities == ()


def test_a_mixed_prompt_is_nearer_to_both_images_than_each_prompt_is_to_the_other(
    demo_clip: pez.Clip, images: list[Image.Image]
) -> None:
    for i in (0, 2, 4):
        mixture = pez.mix(demo_clip, images[i : i + 2], SETTINGS)
        first, second = mixture.prompts
        for mixed in (mixture.shared, mixture.joined):
            assert mixed.target_similarities[0] > second.target_similarities[0]
            assert mixed.target_similarities[1] > first.target_similarities[1]
            assert mixed.similarity == pytest.approx(sum(mixed.target_similarities) / 2, abs=1e-6)


def test_a_mixture_is_made_of_the_prompts_of_its_images(demo_clip: pez.Clip, images: list[Image.Image]) -> None:
    settings = pez.PezSettings(tokens=4, steps=20, swaps=4, template="a scene with {}")
    mixture = pez.mix(demo_clip, images[:2], settings)
    alone = pez.learn_prompts(demo_clip, images[:2], settings)
    assert [p.text for p in mixture.prompts] == [p.text for p in alone]
    assert mixture.shared.text == pez.learn_prompt(demo_clip, images[:2], settings).text
    words = [prompt.text.removeprefix("a scene with ") for prompt in alone]
    assert mixture.joined.text == f"a scene with {words[0]} {words[1]}"
    assert mixture.joined.token_ids == alone[0].token_ids + alone[1].token_ids


def test_what_cannot_be_a_target_is_one_line(demo_clip: pez.Clip, images: list[Image.Image]) -> None:
    with pytest.raises(pez.UserError, match="3 weights for 2 images; expected one each"):
        pez.learn_prompt(demo_clip, images[:2], SETTINGS, [1, 2, 3])
    with pytest.raises(pez.UserError, match="2 weights for 2 images and 1 texts; expected one each"):
        pez.learn_prompt(demo_clip, images[:2], SETTINGS, [1, 2], texts=["a"])
    with pytest.raises(pez.UserError, match="no images; expected one or more"):
        pez.learn_prompt(demo_clip, [], SETTINGS)
    with pytest.raises(pez.UserError, match="1 images to mix; expected two or more"):
        pez.mix(demo_clip, images[:1])
    with pytest.raises(pez.UserError, match="32 tokens do not fit this model; its context of 32 has room for 1 to 30"):
        pez.mix(demo_clip, images[:2], pez.PezSettings(tokens=16))
