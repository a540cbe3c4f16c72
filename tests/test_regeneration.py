"""A picture depends on its prompt, its seed and the settings; what cannot paint is said before any work."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
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
from pez.demo import GENERATOR
from pez.regeneration import Generator, check_generator, load_generator, picture_similarities, seed_for

PROMPTS = ["a red square", "huge green star at the top", "small pink heart", "yellow circle " * 20, "?", "blue moon"]


@pytest.fixture(scope="module")
def generator() -> Generator:
    return load_generator("demo", steps=2)


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
        "out of memory with 8 pictures at once; going on with 4",
        "out of memory with 4 pictures at once; going on with 2",
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

    with pytest.raises(ValueError, match="the picture of 'huge green .*' is not a number; expected another precision"):
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
    for name, kind in (("dpm++", "DPMSolverMultistepScheduler"), ("euler", "EulerDiscreteScheduler")):
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
    same, blanked, other = picture_similarities(demo_clip, originals, [images[0], None, images[0]])
    assert same == pytest.approx(1.0, abs=1e-5)
    assert blanked is None
    assert other == pytest.approx(float(originals[0] @ originals[2]), abs=1e-5)


def folder_of(path: Path, **changes: Any) -> Path:
    path.mkdir()
    index = json.loads((GENERATOR / "model_index.json").read_text()) | changes
    (path / "model_index.json").write_text(json.dumps(index))
    for part in ("scheduler", "text_encoder", "tokenizer", "unet", "vae"):
        (path / part).mkdir()
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "StableDiffusionImg2ImgPipeline"}, "is a StableDiffusionImg2ImgPipeline; expected a text-to"),
        ({"_class_name": "StableDiffusionControlNetPipeline"}, "expected a text-to-image model"),
        ({"_class_name": None}, "is a None; expected a text-to-image model"),
        (
            {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]},
            r"which dpm\+\+ cannot replace; expected sch",
        ),
        (
            {"scheduler": ["elsewhere", "OwnScheduler"]},
            "OwnScheduler, which cannot be exchanged; expected scheduler mo",
        ),
        ({"text_encoder_2": ["transformers", "CLIPTextModel"]}, "no text_encoder_2 in .*: copy the whole folder"),
    ],
)
def test_a_folder_that_cannot_paint_says_why(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check_generator(str(folder_of(tmp_path / "model", **changes)))
    assert "\n" not in str(error.value)


def test_a_model_may_keep_a_scheduler_that_is_not_exchangeable(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    check_generator(str(folder), "model")


def test_what_is_no_folder_of_a_model_says_so(tmp_path: Path) -> None:
    (tmp_path / "file.safetensors").write_bytes(b"x")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text("{")
    for name, message in {
        f"{tmp_path}": "no pipeline in .*; expected a diffusers folder with a model_index.json",
        f"{tmp_path}/file.safetensors": "is a file; expected a hub id or a folder",
        f"{tmp_path}/gone": "no folder .*; expected demo, a hub id",
        f"{tmp_path}/broken": "cannot read the model_index.json",
        "demos": "no folder 'demos'; expected demo, a hub id",
    }.items():
        with pytest.raises(ValueError, match=message):
            check_generator(name)


def test_damaged_weights_are_an_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot load the generator .*model'") as error:
        load_generator(str(folder_of(tmp_path / "model")))
    assert "\n" not in str(error.value)


def test_a_hub_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="no such model in the cache, and the hub does not answer"):
        check_generator("nobody/no-such-model")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that holds nobody/files, without a pipeline, and nothing else."""

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if "nobody/files" in self.path else "RepoNotFound")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    )
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody/no-such-model", "no model 'nobody/no-such-model' on the hub, and no such folder"),
        ("nobody/files", "no model_index.json in 'nobody/files'; expected a model in diffusers' format"),
        ("no body/files", "no model 'no body/files' on the hub"),
    ],
)
def test_a_wrong_name_on_the_hub_is_named(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check_generator(name)
    assert "\n" not in str(error.value)


def test_without_diffusers_it_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"no diffusers .*; install it with pip install -e '\.\[verify\]'"):
        check_generator("demo")
