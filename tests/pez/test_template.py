"""Fixed words around a prompt: what the engine scores is the whole text."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import pez
from pez.models.load import check_model
from pez.models.text_encoder import CausalEncoder
from pez.objectives.clip import ClipObjective
from pez.template import Template

TEMPLATES = [
    Template(),
    Template("an image showing a"),
    Template(after="in the top left corner"),
    Template("a huge", "on plain white, at night"),
]


@pytest.mark.parametrize("template", TEMPLATES, ids=str)
def test_the_score_through_a_template_is_that_of_the_whole_text(
    demo_clip: pez.Clip, images: list[Image.Image], template: Template
) -> None:
    vocabulary = demo_clip.vocabulary(pez.PezSettings())  # its tokens survive decoding and re-encoding
    ids = torch.stack([vocabulary.random_ids(6, torch.Generator().manual_seed(i)) for i in range(16)])
    texts = [template.around(demo_clip.text_of(row)) for row in ids.tolist()]
    target = demo_clip.image_features(images[:16])
    encoder = demo_clip.encoder(6, template)
    assert isinstance(encoder, CausalEncoder)
    whole = demo_clip.text_features(texts)
    score = ClipObjective(encoder).score(vocabulary.embed(ids), target)
    torch.testing.assert_close(score, (whole * target).sum(-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(F.normalize(encoder(vocabulary.embed(ids)), dim=-1), whole, rtol=0, atol=1e-5)
    assert torch.equal(demo_clip.token_features(ids, template), whole)


def test_the_empty_template_is_the_encoder_without_one(demo_clip: pez.Clip) -> None:
    assert demo_clip.encoder(6, Template()) is demo_clip.encoder(6)
    assert Template().around("red circle") == "red circle"


def test_words_before_are_not_computed_again(demo_clip: pez.Clip) -> None:
    one, other = demo_clip.encoder(6), demo_clip.encoder(6, Template("an image showing a"))
    assert isinstance(one, CausalEncoder)
    assert isinstance(other, CausalEncoder)
    assert len(other.embedding_after) == len(one.embedding_after) == 1
    assert other.before == one.before + 4


def test_a_template_that_leaves_no_room_is_refused(demo_clip: pez.Clip) -> None:
    with pytest.raises(ValueError, match="8 tokens do not fit this model; its context of 32 has room for 1 to 5"):
        demo_clip.encoder(8, Template("a red circle on " * 6, "top"))
    with pytest.raises(ValueError, match=r"40 tokens; expected at most 32"):
        demo_clip.encoder(8, Template("a red circle on " * 10))


SETTINGS = pez.PezSettings(tokens=4, steps=60, swaps=8)


def test_tokens_are_learned_for_the_whole_text(demo_clip: pez.Clip, images: list[Image.Image]) -> None:
    inside = dataclasses.replace(SETTINGS, template="at night a huge {} on plain white")
    learned = pez.learn_prompts(demo_clip, images[:16], inside)
    assert all(prompt.text.startswith("at night a huge ") for prompt in learned)
    assert all(prompt.text.endswith(" on plain white") for prompt in learned)
    assert all(len(prompt.token_ids) == 4 for prompt in learned)
    features = demo_clip.image_features(images[:16])
    whole = (demo_clip.text_features([prompt.text for prompt in learned]) * features).sum(-1)
    torch.testing.assert_close(torch.tensor([p.similarity for p in learned]), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.tensor([p.token_similarity for p in learned]), whole, rtol=0, atol=1e-5)
    alone = pez.learn_prompts(demo_clip, images[:16], SETTINGS)
    pasted = demo_clip.text_features([f"at night a huge {prompt.text} on plain white" for prompt in alone])
    assert whole.mean() > (pasted * features).sum(-1).mean() + 0.02


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("a tiger", r"template is 'a tiger', without \{\}; expected it once, as in 'a tiger in the style of \{\}'"),
        ("{} by {}", r"template is '\{\} by \{\}', with 2 of \{\}; expected it once"),
        (3, "template is 3, without {}; expected it once"),
    ],
)
def test_a_template_that_does_not_say_where_the_prompt_stands_is_refused(template: Any, words: str) -> None:
    with pytest.raises(pez.UserError, match=words):
        pez.PezSettings(template=template)


def test_room_is_checked_before_the_weights_are_loaded() -> None:
    check_model("demo", None, 8, Template("a tiger in the style of"))
    with pytest.raises(pez.UserError, match="20 tokens do not fit demo; its context of 32 has room for 1 to 16"):
        check_model("demo", None, 20, Template("a red circle on " * 3, "in winter"))
    with pytest.raises(pez.UserError, match="the template leaves no room for a prompt in demo, whose context is 32"):
        check_model("demo", None, 1, Template("a red circle on " * 7, "in winter"))
