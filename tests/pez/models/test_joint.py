"""Several CLIPs with one vocabulary learn one prompt together."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hub_models import hub_model
from PIL import Image

import pez
from pez.learn import engine_for
from pez.models import load
from pez.models.joint import JointEncoder
from pez.models.load import check_models, load_model
from pez.objectives.clip import ClipObjective
from pez.settings import ModelSettings
from pez.template import Template
from pez.vocabulary import JointVocabulary

SETTINGS = pez.PezSettings(tokens=6, steps=100, swaps=12)


@pytest.fixture(scope="module")
def judge() -> pez.Clip:
    return pez.load_clip("demo-judge")


@pytest.fixture(scope="module")
def joint(demo_clip: pez.Clip, judge: pez.Clip) -> pez.JointClip:
    return pez.JointClip([demo_clip, judge], [1, 3])


def random_ids(clip: pez.Clip, count: int) -> torch.Tensor:
    vocabulary = clip.vocabulary(SETTINGS)
    return torch.stack([vocabulary.random_ids(6, torch.Generator().manual_seed(i)) for i in range(count)])


def test_a_similarity_is_the_weighted_mean_of_the_models(
    joint: pez.JointClip, demo_clip: pez.Clip, judge: pez.Clip, images: list[Image.Image]
) -> None:
    texts = [demo_clip.text_of(row) for row in random_ids(demo_clip, 16).tolist()]
    text, image = joint.text_features(texts), joint.image_features(images[:16])
    each = [(c.text_features(texts) * c.image_features(images[:16])).sum(-1) for c in (demo_clip, judge)]
    torch.testing.assert_close((text * image).sum(-1), (each[0] + 3 * each[1]) / 4, rtol=0, atol=1e-6)
    torch.testing.assert_close(joint.similarities(text, image), torch.stack(each, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("template", [Template(), Template("at night a huge", "on white")], ids=str)
def test_the_score_of_a_soft_prompt_is_that_of_the_whole_text(
    joint: pez.JointClip, demo_clip: pez.Clip, images: list[Image.Image], template: Template
) -> None:
    ids = random_ids(demo_clip, 16)
    soft = joint.vocabulary(SETTINGS).embed(ids)
    target = joint.image_features(images[:16])
    whole = joint.text_features([template.around(demo_clip.text_of(row)) for row in ids.tolist()])
    encoder = joint.encoder(6, template)
    assert isinstance(encoder, JointEncoder)
    score, kept = ClipObjective(encoder).score_and_keep(soft, target)
    torch.testing.assert_close(score, (whole * target).sum(-1), rtol=0, atol=1e-5)
    for start in (0, 4):
        changed = ClipObjective(encoder).score_changed(kept, start, soft[:, None, start:], target)
        torch.testing.assert_close(changed[:, 0], score, rtol=0, atol=1e-5)
        some = slice(3, 9)
        part = ClipObjective(encoder).score_changed(kept.rows(some), start, soft[some, None, start:], target[some])
        torch.testing.assert_close(part[:, 0], score[some], rtol=0, atol=1e-5)


def test_the_nearest_token_has_the_largest_weighted_sum_of_cosines(
    joint: pez.JointClip, demo_clip: pez.Clip, judge: pez.Clip
) -> None:
    vocabulary = joint.vocabulary(pez.PezSettings(vocabulary="words", untrained_tokens=True))
    assert isinstance(vocabulary, JointVocabulary)
    soft = torch.randn(4, 3, 128, generator=torch.Generator().manual_seed(0))
    soft[..., :64] *= 50  # the length of a part must not count
    sums = sum(
        weight * F.normalize(part, dim=-1) @ F.normalize(clip.tower.token_embedding.weight[vocabulary.ids], dim=-1).T
        for weight, part, clip in zip((1, 3), soft.split(64, -1), (demo_clip, judge), strict=True)
    )
    assert isinstance(sums, torch.Tensor)
    assert torch.equal(vocabulary.nearest(soft), vocabulary.ids[sums.argmax(-1)])


def test_a_list_of_one_model_is_that_model(demo_clip: pez.Clip, images: list[Image.Image]) -> None:
    settings = pez.PezSettings(tokens=4, steps=20, swaps=4)
    alone = pez.learn_prompts(demo_clip, images[:4], settings)
    assert pez.learn_prompts([demo_clip], images[:4], settings) == alone
    assert all(prompt.model_similarities == () for prompt in alone)


def test_a_model_beside_itself_takes_the_steps_that_it_takes_alone(images: list[Image.Image]) -> None:
    clip = pez.load_demo_clip(precision="fp64")
    settings = pez.PezSettings(tokens=4, steps=30, method="pez")
    keys = [str(i) for i in range(8)]
    alone = pez.learn_prompts(clip, images[:8], settings, keys)
    twice = pez.learn_prompts([clip, clip], images[:8], settings, keys)
    assert [prompt.token_ids for prompt in twice] == [prompt.token_ids for prompt in alone]
    assert [p.similarity for p in twice] == pytest.approx([p.similarity for p in alone])


def test_prompts_of_two_models_are_better_for_both_than_those_of_one(
    demo_clip: pez.Clip, judge: pez.Clip, images: list[Image.Image]
) -> None:
    chosen = images[:32]
    both = pez.learn_prompts([demo_clip, judge], chosen, SETTINGS)
    for prompt in both:
        assert prompt.similarity == pytest.approx(sum(prompt.model_similarities) / 2, abs=1e-6)
    one = [prompt.text for prompt in pez.learn_prompts(demo_clip, chosen, SETTINGS)]
    of_one = torch.stack([(c.text_features(one) * c.image_features(chosen)).sum(-1) for c in (demo_clip, judge)])
    assert sum(prompt.similarity for prompt in both) / 32 > float(of_one.mean()) + 0.005


def test_several_models_search_longer_by_default(
    demo_clip: pez.Clip, judge: pez.Clip, images: list[Image.Image]
) -> None:
    few = pez.PezSettings(tokens=3, steps=5)
    chosen = dataclasses.replace(few, swaps=32, candidates=32, token_weight=0.0, restarts=1)
    assert few.for_models(2) == chosen
    assert pez.learn_prompts([demo_clip, judge], images[:2], few) == pez.learn_prompts(
        [demo_clip, judge], images[:2], chosen
    )
    assert few.for_models(1) is few
    assert dataclasses.replace(few, swaps=4).for_models(2).rounds == 4
    published = dataclasses.replace(few, method="pez")
    assert published.for_models(2) is published


def test_the_score_of_each_token_alone_counts_for_both(
    demo_clip: pez.Clip, judge: pez.Clip, images: list[Image.Image]
) -> None:
    settings = pez.PezSettings(tokens=3, steps=5, swaps=3, token_weight=1.0)
    joint = pez.JointClip([demo_clip, judge])
    objective = engine_for(joint, settings, 16).objective
    ids = random_ids(demo_clip, 4)
    target = joint.image_features(images[:4])
    features = joint.token_features(ids.view(-1, 1)).view(4, 6, -1)
    torch.testing.assert_close(
        objective.score_tokens(ids, target), (features * target[:, None]).sum(-1), rtol=0, atol=1e-5
    )


def test_models_of_two_vocabularies_are_refused(demo_clip: pez.Clip, tmp_path: Path) -> None:
    name = hub_model("BERT", tmp_path / "model")
    words = "have different vocabularies; expected models with one, such as ViT-L-14 and ViT-bigG-14"
    with pytest.raises(pez.UserError, match=words):
        pez.learn_prompts([demo_clip, pez.load_clip(name)], [Image.new("RGB", (8, 8))])
    with pytest.raises(pez.UserError, match=f"^demo and {name} {words}"):
        check_models(ModelSettings(model=("demo", name)))


def test_weights_that_do_not_fit_the_models_are_refused(demo_clip: pez.Clip, judge: pez.Clip) -> None:
    with pytest.raises(pez.UserError, match="3 weights for 2 models; expected one each"):
        pez.JointClip([demo_clip, judge], [1, 2, 3])
    with pytest.raises(pez.UserError, match="the weights of the models are .* expected numbers above 0"):
        pez.JointClip([demo_clip, judge], [1, -1])
    with pytest.raises(pez.UserError, match="clip is .*; expected a CLIP from pez.load_clip, or a list of them"):
        pez.learn_prompts([], [Image.new("RGB", (8, 8))])


def test_a_model_that_does_not_fit_beside_the_others_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load.load_clip

    def full(name: str, *rest: object) -> pez.Clip:
        if name == "demo-judge":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loaded(name)

    monkeypatch.setattr(load, "load_clip", full)
    with pytest.raises(pez.UserError, match="^demo-judge does not fit in the memory of cpu beside demo; use a larger"):
        load_model(ModelSettings(model=("demo", "demo-judge")), "cpu")
