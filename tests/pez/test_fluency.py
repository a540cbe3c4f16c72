"""Fluency: a bigram model of texts, and prompts that it finds less surprising."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

import pez
from pez.demo import scenes
from pez.fluency import Bigrams, Texts, bigrams_of, read_texts


def test_probabilities_of_what_follows_a_token_sum_to_one() -> None:
    model = Bigrams([[1, 2], [1, 2], [1, 3]], 5)
    for before in range(6):  # 5 = the start of a text
        values = torch.exp(-model.surprise_of_pairs(torch.full((5,), before), torch.arange(5)))
        assert values.sum().item() == pytest.approx(1)
    [after_one] = torch.exp(-model.surprise_of_pairs(torch.tensor([1]), torch.tensor([2]))).tolist()
    single = (2 + 0.1) / (6 + 0.5)
    assert after_one == pytest.approx((2 + 2 * single) / (3 + 2))
    assert model.perplexity([1, 2]) == pytest.approx(math.exp(model.surprise(torch.tensor([1, 2])).item()))
    assert model.perplexity([]) is None


def test_the_part_of_one_position_differs_as_the_whole_does() -> None:
    model = Bigrams([[1, 2, 3], [2, 2, 4], [0, 1]], 5)
    ids = torch.tensor([[1, 2, 3], [2, 2, 4]])
    for position in range(3):
        whole = []
        for token in range(5):
            other = ids.clone()
            other[:, position] = token
            whole.append(model.surprise(other))
        apart = torch.stack(whole, 1) - model.surprise_of_swaps(ids, position, torch.arange(5))
        assert torch.allclose(apart, apart[:, :1].expand_as(apart))


def test_fluent_prompts_are_less_surprising_and_a_weight_of_0_only_measures(demo_clip: pez.Clip, images: list) -> None:
    texts = Texts(scenes.captions(2000))
    settings = pez.PezSettings(tokens=6, steps=40, swaps=12)
    plain, measured, fluent = (
        pez.learn_prompts(demo_clip, images[:8], each)
        for each in (
            settings,
            dataclasses.replace(settings, fluency_text=texts),
            dataclasses.replace(settings, fluency_text=texts, fluency=0.1),
        )
    )
    assert [dataclasses.replace(prompt, perplexity=None) for prompt in measured] == plain
    model = bigrams_of(demo_clip.tokens, texts)
    assert measured[0].perplexity == model.perplexity(demo_clip.tokens.read([measured[0].text])[0])
    before, after = (sum(math.log(p.perplexity or 0) for p in prompts) / 8 for prompts in (measured, fluent))
    assert after < before - 0.5
    assert sum(p.similarity for p in fluent) < sum(p.similarity for p in plain)


def test_a_file_is_read_once(tmp_path: Path) -> None:
    file = tmp_path / "captions.txt"
    file.write_text("a red ring\n\n  \na red ring\na blue square\n", encoding="utf-8")
    settings = pez.PezSettings(fluency_text=(str(file),))
    file.unlink()
    again = dataclasses.replace(settings, tokens=4)
    assert again.fluency_text == ("a red ring", "a red ring", "a blue square")


@pytest.mark.parametrize("data", [None, b"", b"\xff\xfe\xff"])
def test_a_file_without_texts_is_one_line(tmp_path: Path, data: bytes | None) -> None:
    file = tmp_path / "captions.txt"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(pez.UserError, match="fluency_text is .*captions.txt, which"):
        read_texts(str(file))


def test_fluency_without_texts_is_refused(demo_clip: pez.Clip, images: list) -> None:
    with pytest.raises(pez.UserError, match=r"fluency is 0.1, but there is no fluency_text; expected a file"):
        pez.learn_prompts(demo_clip, images[:1], pez.PezSettings(fluency=0.1))
    with pytest.raises(pez.UserError, match="fluency is 0.1; expected 0, since the method gcg"):
        pez.PezSettings(fluency=0.1, method="gcg")
