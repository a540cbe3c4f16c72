"""A picture depends on its prompt, its seed and the settings."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor

import pez
from pez.regeneration import Generator, image_similarities, load_generator, seed_for
from pez.settings import Scheduler

PROMPTS = ["a red square", "huge green star at the top", "small pink heart", "yellow circle " * 20, "?", "blue moon"]


@pytest.fixture(scope="module")
def generator() -> Generator:
    made = load_generator("demo", steps=2)
    made.pipeline.to(torch.float64)  # in float32, some CPUs round another batch size differently
    return made


def pixels(pictures: list[Image.Image | None]) -> list[bytes]:
    return [picture.tobytes() for picture in pictures if picture is not None]


class Wrapped:
    """A pipeline with a fault."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.sizes: list[int] = []

    def __call__(self, prompt: list[str], **options: Any) -> Any:
        self.sizes.append(len(prompt))
        return self.pipeline(prompt=prompt, **options)


class Small(Wrapped):
    """Has room for some pictures only."""

    room = 2

    def __call__(self, prompt: list[str], **options: Any) -> Any:
        if len(prompt) > self.room:
            raise torch.OutOfMemoryError("no room")
        return super().__call__(prompt, **options)


def faulty(generator: Generator, kind: type[Wrapped], batch: int = 8) -> Generator:
    return Generator(kind(generator.pipeline), "demo", generator.device, generator.steps, generator.guidance, batch)


def test_a_picture_depends_on_its_prompt_and_seed_alone(generator: Generator) -> None:
    seeds = [seed_for(0, str(i), 0) for i in range(6)]
    together = pixels(generator.images(PROMPTS, seeds))
    assert len(set(together)) == 6
    assert pixels(generator.images(PROMPTS[::-1], seeds[::-1])) == together[::-1]
    assert pixels(generator.images(PROMPTS[2:3], seeds[2:3])) == together[2:3]
    assert pixels(generator.images(PROMPTS[2:3], [1])) != together[2:3]


def test_seeds_depend_on_the_key_and_fit_other_programs() -> None:
    seeds = {seed_for(s, key, n) for s in (0, 1) for key in ("a", "b", "ä\udcff") for n in (0, 1)}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert seed_for(0, "00000", 0) == 627074299  # for good: rows tell it


def test_out_of_memory_halves_the_batch_and_goes_on(generator: Generator) -> None:
    small = faulty(generator, Small)
    with pytest.warns(UserWarning, match="out of memory") as told:
        made = small.images(PROMPTS, range(6))
    assert [str(w.message) for w in told if w.category is UserWarning] == [
        "out of memory with 8 images per batch; continuing with 4",
        "out of memory with 4 images per batch; continuing with 2",
    ]
    assert small.pipeline.sizes == [2, 2, 2]
    assert pixels(made) == pixels(generator.images(PROMPTS, range(6)))


def test_no_room_for_one_picture_is_an_error(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Small, "room", 0)
    with pytest.raises(torch.OutOfMemoryError):
        faulty(generator, Small, batch=1).images(["a"], [0])


def test_a_picture_that_is_not_a_number_is_an_error(generator: Generator) -> None:
    class Broken(Wrapped):
        def __call__(self, prompt: list[str], **options: Any) -> Any:
            made = super().__call__(prompt, **options)
            made.images[1] = np.nan
            return made

    with pytest.raises(ValueError, match="the image of 'huge green .*' is NaN; try precision fp32 or bf16"):
        faulty(generator, Broken).images(PROMPTS, range(6))


def test_a_safety_checker_that_a_model_ships_blanks_pictures(generator: Generator, tmp_path: Path) -> None:
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPConfig(
        text_config=tower, vision_config={**tower, "image_size": 32, "patch_size": 16}, projection_dim=8
    )
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data.fill_(-2.0)  # any cosine is above: nothing is safe
    parts = {**generator.pipeline.components, "safety_checker": checker}
    parts["feature_extractor"] = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    diffusers.StableDiffusionPipeline(**parts).save_pretrained(tmp_path / "prude")
    prude = load_generator(str(tmp_path / "prude"), steps=1)
    assert prude.images(PROMPTS[:2], [0, 1]) == [None, None]


def test_the_scheduler_changes_and_what_the_model_predicts_stays(generator: Generator) -> None:
    kinds: dict[Scheduler, str] = {"dpm++": "DPMSolverMultistepScheduler", "euler": "EulerDiscreteScheduler"}
    for name, kind in kinds.items():
        scheduler = load_generator("demo", scheduler=name).pipeline.scheduler
        assert type(scheduler).__name__ == kind
        assert scheduler.config.prediction_type == "v_prediction"
        assert scheduler.config.beta_schedule == "scaled_linear"
    assert generator.pipeline.scheduler.config.algorithm_type == "dpmsolver++"


def test_guidance_and_steps_change_the_picture(generator: Generator) -> None:
    pictures = [
        pixels(Generator(generator.pipeline, "demo", generator.device, steps, guidance).images(PROMPTS[:1], [0]))
        for steps, guidance in ((2, 9.0), (2, 0.0), (1, 9.0))
    ]
    assert len({picture for [picture] in pictures}) == 3


def test_similarity_is_one_for_the_same_picture_and_none_for_a_blanked_one(
    demo_clip: pez.Clip, images: list[Image.Image]
) -> None:
    originals = demo_clip.image_features(images[:3])
    same, blanked, other = image_similarities(demo_clip, originals, [images[0], None, images[0]])
    assert same == pytest.approx(1.0, abs=1e-5)
    assert blanked is None
    assert other == pytest.approx(float(originals[0] @ originals[2]), abs=1e-5)
