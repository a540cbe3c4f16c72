"""Models with the hub's tokenizers have prompts that survive as text, as CLIP's do."""

import fnmatch
from pathlib import Path

import open_clip
import pytest
import torch
from hub_models import KINDS, hub_model
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import pez
from pez.demo.scenes import caption_words
from pez.settings import Vocabularies


@pytest.fixture(scope="module", params=KINDS)
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> pez.Clip:
    clip = pez.load_clip(hub_model(request.param, tmp_path_factory.mktemp("hub") / "model"))
    clip.name = request.param
    return clip


FIRST_DIFFERS = ("byte-level", "Gemma")
"""tokenizers that mark a word by the space before it: the first word of any text is another token than the same word later"""


@pytest.mark.parametrize("vocabulary", ["model", "words", "full"])
def test_prompts_survive_as_text_in_any_order(clip: pez.Clip, vocabulary: Vocabularies) -> None:
    found = clip.vocabulary(pez.PezSettings(vocabulary=vocabulary))
    assert len(found.ids) > 200
    for seed in range(300):
        ids = found.random_ids(6, torch.Generator().manual_seed(seed)).tolist()
        read = clip.tokens.read([clip.text_of(ids)])[0]
        if clip.name in FIRST_DIFFERS:
            assert read[-5:] == ids[1:], clip.text_of(ids)
        else:
            assert read == ids, clip.text_of(ids)


def test_words_are_words_that_people_write(clip: pez.Clip) -> None:
    texts = {clip.text_of([i]).lower() for i in clip.vocabulary(pez.PezSettings()).ids.tolist()}
    assert {"red", "the", "of"} <= texts
    # Caption words are words wherever the small vocabulary has them.
    pieces = {clip.text_of([i]).lower() for i in clip.vocabulary(pez.PezSettings(vocabulary="full")).ids.tolist()}
    assert texts >= set(caption_words()) & pieces
    assert not texts & {"tion", "ment", "ness", "s", "##s", "wor", "somet", "whi"}  # pieces that some of them have
    assert all(text.isalpha() for text in texts)
    pieces = {clip.text_of([i]) for i in range(clip.tower.token_embedding.num_embeddings - 5)}
    assert pieces & {"wor", "somet", "whi", "tion", "s"}


def test_a_prompt_is_learned_and_anyone_can_measure_it(clip: pez.Clip, images: list[Image.Image]) -> None:
    [prompt] = pez.learn_prompts(clip, images[:1], pez.PezSettings(tokens=5, steps=20, swaps=5))
    model = clip.model
    image = model.encode_image(clip.preprocess(images[0])[None], normalize=True)
    text = model.encode_text(clip.tokenizer([prompt.text], context_length=20), normalize=True)
    assert prompt.similarity == pytest.approx(float(image @ text.T), abs=1e-5)
    if clip.name not in FIRST_DIFFERS:
        assert prompt.token_similarity == pytest.approx(prompt.similarity, abs=1e-5)


@given(
    words=st.lists(st.sampled_from(["red", "the", "big*", "a", "?n", "circle", "yellow square"]), min_size=1),
    seed=st.integers(),
)
@settings(max_examples=15, deadline=None)
def test_a_blocked_word_is_in_no_text(clip: pez.Clip, words: list[str], seed: int) -> None:
    for exact in (False, True):
        found = clip.vocabulary(pez.PezSettings(vocabulary="full", exact=exact, blocklist=tuple(words)))
        for i in range(20):
            ids = found.random_ids(6, torch.Generator().manual_seed((seed + i) % 2**63)).tolist()
            text = f" {' '.join(clip.text_of(ids).lower().split())} "
            for word in words:
                if " " in word:
                    assert f" {word} " not in text
                else:
                    assert not fnmatch.filter(text.split(), word), text


def test_a_tokenizer_without_a_start_token_has_all_its_room(tmp_path: Path) -> None:
    clip = pez.load_clip(hub_model("mT5", tmp_path))
    assert clip.frame.before == []
    ids = clip.vocabulary(pez.PezSettings()).ids[:19]
    own = clip.token_features(ids[None])
    ours = torch.nn.functional.normalize(clip.encoder(19)(clip.tower.token_embedding(ids[None])), dim=-1)
    torch.testing.assert_close(ours, own)


@pytest.mark.parametrize(
    ("model", "tokenizer"),
    [
        ("ViT-L-14-worldwide", "google/mt5-base"),
        ("ViT-B-16-SigLIP2", "timm/ViT-B-16-SigLIP2"),
        ("ViT-L-14-CLIPA", "bert-base-uncased"),
    ],
)
def test_a_tokenizer_that_cannot_be_had_is_named(model: str, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tag = (open_clip.list_pretrained_tags_by_model(model) or ["none"])[0]
    with pytest.raises(ValueError, match=f"cannot load the tokenizer '{tokenizer}' of '{model}': ") as error:
        pez.load_clip(model, tag)
    assert "\n" not in str(error.value)
