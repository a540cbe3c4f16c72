"""A negative prompt, learned on what is not wanted, keeps it out of generated images."""

from typing import Any

import pytest
import torch
from PIL import Image

import pez
from pez.demo import scenes
from pez.regeneration import Generator, load_generator
from pipeline.settings import VerifySettings
from pipeline.stages.verification import describe_verification, generator_of


def test_images_are_less_like_what_a_negative_prompt_was_learned_on(demo_clip: pez.Clip) -> None:
    yellow = [scene for scene in scenes.held_out_scenes(600) if scene.background_color == "yellow"][:8]
    unwanted = [Image.fromarray(scenes.render(scene)) for scene in yellow]
    negative = pez.learn_prompt(demo_clip, unwanted, pez.PezSettings(tokens=4, steps=60, swaps=8)).text
    judge = pez.load_clip("demo-judge")
    features = judge.image_features(unwanted)
    prompts = ["a scene with a big ring", "a small star", "a blue heart", "a triangle"]
    likeness = []
    for words in (None, negative):
        generator = load_generator("demo", steps=6, guidance=4.0, negative_prompt=words)
        images = [image for image in generator.images(prompts, [1, 2, 3, 4]) if image is not None]
        likeness.append(float((judge.image_features(images) @ features.T).mean()))
    assert likeness[1] < likeness[0] - 0.02


class Unguided:
    def __call__(self, prompt: list[str], output_type: str, generator: Any, num_inference_steps: int) -> None: ...


def test_a_negative_prompt_that_has_no_effect_is_one_line() -> None:
    with pytest.raises(pez.UserError, match="the generator 'turbo' takes no negative prompt; omit it"):
        Generator(Unguided(), "turbo", torch.device("cpu"), negative_prompt="red")
    with pytest.raises(
        pez.UserError, match="verify_negative_prompt has no effect with guidance 0; expected more than 1"
    ):
        VerifySettings(verify="demo", guidance=0, verify_negative_prompt="red")


def test_verification_gives_it_to_the_generator() -> None:
    settings = VerifySettings(verify="demo", verify_negative_prompt="yellow")
    assert generator_of(settings, "cpu").negative_prompt == "yellow"
    described = describe_verification(settings, "demo", "cpu")["generator"]
    assert isinstance(described, dict)
    assert described["verify_negative_prompt"] == "yellow"
    assert "verify_negative_prompt" not in str(describe_verification(VerifySettings(verify="demo"), "demo", "cpu"))
