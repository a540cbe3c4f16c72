"""Fixed words around a prompt: what the engine scores is the whole text."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import pez
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
