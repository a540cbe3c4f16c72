"""The cut context is exact where it is used, and not used where it is not."""

from typing import Any

import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from pez.models.text_encoder import CausalEncoder, Frame, FullContextEncoder, frame_of, framed, text_encoder, text_tower

VISION = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
FRAME = frame_of(SimpleTokenizer(context_length=20), 20)
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3}


def random_model(kind: Any = open_clip.CLIP, **text: Any) -> Any:
    torch.manual_seed(0)
    model = kind(embed_dim=16, vision_cfg=VISION, text_cfg={**TEXT, **text}).double().eval().requires_grad_(False)
    torch.nn.init.normal_(text_tower(model).positional_embedding, std=0.3)  # so that positions matter
    return model


MODELS = {
    "CLIP": lambda: random_model(),
    "CustomTextCLIP": lambda: random_model(open_clip.CustomTextCLIP),
    "projection with bias": lambda: random_model(open_clip.CustomTextCLIP, proj_bias=True),
    "quick gelu": lambda: random_model(act_kwargs={"approximate": "tanh"}),
    "layer scale": lambda: random_model(ls_init_value=0.3),
    "bidirectional, last": lambda: random_model(open_clip.CustomTextCLIP, no_causal_mask=True, pool_type="last"),
    "causal, last": lambda: random_model(open_clip.CustomTextCLIP, pool_type="last"),
    "bidirectional, first": lambda: random_model(open_clip.CustomTextCLIP, no_causal_mask=True, pool_type="first"),
}
CUT = {"CLIP", "CustomTextCLIP", "projection with bias", "quick gelu"}


@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_encode_text(name: str) -> None:
    model, frame = MODELS[name](), FRAME
    encoder = text_encoder(model, frame, 6, torch.float64)
    ids = torch.randint(0, 49406, (5, 6))
    own = model.encode_text(framed(ids, frame, 20))
    torch.testing.assert_close(encoder(text_tower(model).token_embedding(ids)), own, rtol=0, atol=1e-12)
    assert type(encoder) is (CausalEncoder if name in CUT else FullContextEncoder)


@pytest.mark.parametrize("name", MODELS)
def test_features_with_fixed_words_are_those_of_encode_text(name: str) -> None:
    model = MODELS[name]()
    frame = Frame([*FRAME.before, 320, 1125], [530, 518, 8853, *FRAME.after], words_after=3)
    ids = torch.randint(0, 49406, (5, 6))
    encoder = text_encoder(model, frame, 6, torch.float64)
    own = model.encode_text(framed(ids, frame, 20))
    torch.testing.assert_close(encoder(text_tower(model).token_embedding(ids)), own, rtol=0, atol=1e-12)
    assert type(encoder) is (CausalEncoder if name in CUT else FullContextEncoder)
    with pytest.raises(ValueError, match="14 tokens do not fit this model; its context of 20 has room for 1 to 13"):
        text_encoder(model, frame, 14, torch.float64)


@pytest.mark.parametrize("name", MODELS)
def test_features_of_prompts_that_begin_alike_are_those_of_whole_prompts(name: str) -> None:
    model = MODELS[name]()
    encoder = text_encoder(model, FRAME, 6, torch.float64)
    embed = text_tower(model).token_embedding
    first = torch.randint(0, 49406, (5, 6))
    features, past = encoder.with_past(embed(first))
    torch.testing.assert_close(features, encoder(embed(first)), rtol=0, atol=0)
    for start in range(6):
        ends = torch.randint(0, 49406, (5, 3, 6 - start))
        whole = torch.cat([first[:, None, :start].expand(-1, 3, -1), ends], 2)
        expected = encoder(embed(whole.flatten(0, 1))).view(5, 3, -1)
        torch.testing.assert_close(encoder.continued(past, start, embed(ends)), expected, rtol=0, atol=1e-12)
        some = encoder.continued(past.rows(slice(1, 3)), start, embed(ends[1:3]))
        torch.testing.assert_close(some, expected[1:3], rtol=0, atol=1e-12)


def test_gradients_are_those_of_the_full_context() -> None:
    model, frame = random_model(), FRAME
    full = FullContextEncoder(model, type(frame)(frame.before, frame.after[: 20 - 6 - 1]), 6, torch.float64)
    cut = text_encoder(model, frame, 6, torch.float64)
    soft = torch.randn(3, 6, 32, dtype=torch.float64)
    gradients: list[torch.Tensor] = []
    for encoder in (full, cut):
        leaf = soft.clone().requires_grad_()
        gradients += torch.autograd.grad(encoder(leaf).square().sum(), leaf)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)


def test_bfloat16_features_are_near() -> None:
    model, frame = random_model().float(), FRAME
    soft = model.token_embedding(torch.randint(0, 49406, (8, 6)))
    exact, rough = (text_encoder(model, frame, 6, d)(soft).float() for d in (torch.float32, torch.bfloat16))
    assert torch.cosine_similarity(exact, rough, dim=-1).min() > 0.999


@pytest.mark.slow
def test_the_compiled_block_gives_the_same_features_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # no pool of processes that import torch
    model, frame = random_model(), FRAME
    soft = torch.randn(4, 6, 32, dtype=torch.float64)
    found = []
    for compiled in (False, True):
        leaf = soft.clone().requires_grad_()
        features = text_encoder(model, frame, 6, torch.float64, compiled)(leaf)
        found.append((features, *torch.autograd.grad(features.square().sum(), leaf)))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)


def test_tokens_over_the_context_are_refused() -> None:
    with pytest.raises(ValueError, match="19 tokens do not fit this model; its context of 20 has room for 1 to 18"):
        text_encoder(random_model(), FRAME, 19, torch.float32)


def test_the_longest_prompt_fits() -> None:
    model, frame = random_model(), FRAME
    ids = torch.randint(0, 49406, (2, 18))
    own = model.encode_text(framed(ids, frame, 20))
    ours = text_encoder(model, frame, 18, torch.float64)(model.token_embedding(ids))
    torch.testing.assert_close(ours, own, rtol=0, atol=1e-12)


def test_a_tower_with_a_class_token_is_refused() -> None:
    with pytest.raises(ValueError, match="class token"):
        text_tower(random_model(open_clip.CustomTextCLIP, embed_cls=True))
