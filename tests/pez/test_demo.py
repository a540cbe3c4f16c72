"""The shipped models know the scenes, and the method finds on them what a caption says and more."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pez
from pez.demo import GUIDE, JUDGE, scenes
from pez.demo.evaluation import evaluate_demo_clip
from pipeline.sources.demo_shards import demo_shards


@pytest.mark.parametrize("name", ["demo", "demo-judge"])
def test_a_demo_clip_knows_the_scenes(name: str) -> None:
    scores = evaluate_demo_clip(pez.load_clip(name).model, 1000, ["shape", "color", "background_color"])
    assert scores.pop("top1") >= 0.97
    assert min(scores.values()) >= 0.95


def test_guide_and_judge_are_two_models() -> None:
    one, other = (pez.load_clip(name).tower.token_embedding.weight for name in ("demo", "demo-judge"))
    assert torch.cosine_similarity(one, other, dim=-1).abs().mean() < 0.3
    assert all((f / "open_clip_model.safetensors").stat().st_size < 15e6 for f in (GUIDE, JUDGE))


def test_learned_prompts_say_what_is_seen_and_pass_the_true_captions(demo_clip: pez.Clip) -> None:
    held_out = scenes.held_out_scenes(256)
    images = [Image.fromarray(scenes.render(scene)) for scene in held_out]
    prompts = pez.learn_prompts(demo_clip, images, pez.PezSettings(tokens=8))
    captions = demo_clip.text_features([scenes.caption(scene) for scene in held_out])
    of_captions = (demo_clip.image_features(images) * captions).sum(-1).tolist()
    pairs = list(zip(held_out, prompts, of_captions, strict=True))
    assert np.mean([p.similarity > of_caption for _, p, of_caption in pairs]) >= 0.90
    assert np.mean([s.shape in p.text.split() for s, p, _ in pairs]) >= 0.85
    assert np.mean([s.color in p.text.split() for s, p, _ in pairs]) >= 0.80


def test_one_prompt_for_two_images_is_nearer_to_both_than_a_prompt_of_either(
    demo_clip: pez.Clip, images: list[Image.Image]
) -> None:
    settings = pez.PezSettings(tokens=6)
    both = pez.learn_prompt(demo_clip, images[:2], settings)
    features = demo_clip.image_features(images[:2])
    single = [prompt.text for prompt in pez.learn_prompts(demo_clip, images[:2], settings)]
    means = (demo_clip.text_features([both.text, *single]) @ features.T).mean(1).tolist()
    assert both.similarity == pytest.approx(means[0], abs=1e-5)
    assert means[0] > max(means[1:])


def test_a_distilled_prompt_is_short_and_keeps_the_meaning(demo_clip: pez.Clip) -> None:
    text = "a picture of a huge red heart at the bottom left on a plain green background"
    prompt = pez.distill(demo_clip, text, pez.PezSettings(tokens=6))
    assert len(prompt.token_ids) == 6
    assert {"heart", "red", "green"} <= set(prompt.text.split())
    assert prompt.similarity > 0.9


def test_prompts_are_the_same_each_time(demo_clip: pez.Clip, images: list[Image.Image]) -> None:
    settings = pez.PezSettings(tokens=5, steps=20)
    together = pez.learn_prompts(demo_clip, images[:20], settings)
    assert pez.learn_prompts(demo_clip, images[19:20], settings) == together[19:]


def test_held_out_scenes_are_of_combinations_never_trained() -> None:
    rng = np.random.default_rng(0)
    assert not any(scenes.sample_scene(rng, held_out=False).held_out for _ in range(200))
    assert all(scene.held_out for scene in scenes.held_out_scenes(50))


def test_a_scene_is_drawn_and_told_the_same_each_time() -> None:
    scene = scenes.held_out_scenes(1)[0]
    assert np.array_equal(scenes.render(scene), scenes.render(scene))
    assert scenes.caption(scene) == scenes.caption(scene)


def test_demo_shards_are_the_same_bytes_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for name in ("one", "two"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        made.append([Path(p).read_bytes() for p in demo_shards()])
    assert made[0] == made[1]
    assert len(made[0]) == 4
