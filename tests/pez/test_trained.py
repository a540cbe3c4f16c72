"""Tokens that a model was never trained on are in no prompt, unless they are asked for."""

import open_clip
import pytest
import torch
from PIL import Image

import pez
from pez.demo.scenes import caption_words
from pez.trained import impossible_tokens, trained_tokens


@pytest.fixture(scope="module")
def tokenizer() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer()


def embedding_of(trained: torch.Tensor, width: int = 64) -> torch.Tensor:
    """(49408, width): random rows, those that were trained twice as long."""
    rows = 0.02 * torch.randn(49_408, width, generator=torch.Generator().manual_seed(0))
    rows[trained] *= 2
    return rows


def test_tokens_of_bytes_that_no_text_has_are_known(demo_clip: pez.Clip) -> None:
    found = impossible_tokens(demo_clip.tokenizer)
    assert len(found) == 26
    assert all("\ufffd" in demo_clip.text_of([i]) for i in found)


def test_rows_that_grew_are_those_of_trained_tokens(tokenizer: open_clip.SimpleTokenizer) -> None:
    trained = torch.arange(1000, 9000, 2)
    found = trained_tokens(tokenizer, embedding_of(trained))
    assert found[trained].float().mean() > 0.99
    assert found.sum() < 1.02 * len(trained)


def test_with_random_weights_all_tokens_are_kept(tokenizer: open_clip.SimpleTokenizer) -> None:
    assert trained_tokens(tokenizer, embedding_of(torch.tensor([], dtype=torch.long))).all()


def test_weights_that_decayed_to_nothing_are_untrained(tokenizer: open_clip.SimpleTokenizer) -> None:
    rows = embedding_of(torch.tensor([], dtype=torch.long))
    rows[40_000:] = 0
    rows[impossible_tokens(tokenizer)] = 0
    assert trained_tokens(tokenizer, rows).nonzero().squeeze(-1).tolist() == sorted(
        set(range(40_000)) - set(impossible_tokens(tokenizer))
    )


def test_a_tokenizer_without_tokens_of_bytes_keeps_all() -> None:
    class Words:
        all_special_ids = (0,)

        def get_vocab(self) -> dict[str, int]:
            return {"red": 1, "À": 2}

    assert trained_tokens(Words(), torch.randn(3, 8)).all()


def test_the_demo_was_trained_on_its_captions(demo_clip: pez.Clip) -> None:
    full = demo_clip.vocabulary(pez.PezSettings(vocabulary="full"))
    texts = {demo_clip.tokens.texts[i] for i in full.ids.tolist()}
    assert len(texts & set(caption_words())) > 0.9 * len(caption_words())
    assert len(full.ids) < 100


def test_prompts_of_trained_tokens_suit_another_model_better(demo_clip: pez.Clip, images: list[Image.Image]) -> None:
    judge = pez.load_clip("demo-judge")
    mean = {}
    for untrained in (False, True):
        settings = pez.PezSettings(vocabulary="full", untrained_tokens=untrained, steps=60)
        prompts = pez.learn_prompts(demo_clip, images[:32], settings)
        features = judge.text_features([prompt.text for prompt in prompts])
        mean[untrained] = float((features * judge.image_features(images[:32])).sum(-1).mean())
    assert mean[False] > mean[True] + 0.03


def test_another_answer_than_yes_and_no_is_refused() -> None:
    with pytest.raises(ValueError, match="untrained_tokens is 'some'; expected True, False or None"):
        pez.PezSettings(untrained_tokens="some")  # type: ignore[arg-type]
