"""Python takes images as people have them, sees them as the jobs do, and is not changed by what is around it."""

import dataclasses
import io
import logging
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from samples_on_disk import encoded

import pez
from pez.image_inputs import rgb_images
from pez.images import decode_image

SETTINGS = pez.PezSettings(tokens=4, steps=5, swaps=3)


@pytest.fixture(scope="module")
def scene(images: list[Image.Image]) -> Image.Image:
    return images[0]


def forms(scene: Image.Image, folder: Path) -> dict[str, Any]:
    path = folder / "scene.png"
    path.write_bytes(encoded(scene))
    array = np.asarray(scene)
    return {
        "a path": path,
        "a string": str(path),
        "bytes": path.read_bytes(),
        "a PIL image": scene,
        "RGBA": scene.convert("RGBA"),
        "an array": array,
        "an array of floats": array / 255,
        "an array of half floats' tensor": torch.from_numpy(array.copy()) / 255,
        "channels first": array.transpose(2, 0, 1),
        "whole numbers": array.astype(np.int64),
        "16 bits": array.astype(np.uint16) * 257,
        "a batch": array[None],
        "ComfyUI's IMAGE": (torch.from_numpy(array.copy()) / 255)[None],
        "an open file": io.BytesIO(path.read_bytes()),
        "open files": [path.open("rb")],
        "a list": [scene],
        "a tuple of paths": (path,),
        "a generator": (image for image in [scene]),
    }


def test_every_form_of_an_image_has_the_same_prompt(demo_clip: pez.Clip, scene: Image.Image, tmp_path: Path) -> None:
    [expected] = pez.learn_prompts(demo_clip, [scene], SETTINGS)
    for name, form in forms(scene, tmp_path).items():
        assert pez.learn_prompts(demo_clip, form, SETTINGS) == [expected], name
    for form in forms(scene, tmp_path).values():
        assert pez.learn_prompt(demo_clip, form, SETTINGS).text == pez.learn_prompt(demo_clip, scene, SETTINGS).text


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_default_dtype_of_a_program_changes_no_prompt(
    demo_clip: pez.Clip, scene: Image.Image, dtype: torch.dtype
) -> None:
    def learned() -> list[pez.Prompt]:
        both = [scene, scene.rotate(90)]
        return [*pez.learn_prompts(demo_clip, both, SETTINGS), pez.learn_prompt(demo_clip, both, SETTINGS, [1.0, -0.3])]

    expected = learned()
    torch.set_default_dtype(dtype)
    try:
        assert learned() == expected
    finally:
        torch.set_default_dtype(torch.float32)


def odd(kind: str) -> Image.Image:
    rng = np.random.default_rng(0)
    rgba = Image.fromarray(rng.integers(0, 256, (40, 60, 4), dtype=np.uint8), "RGBA")
    match kind:
        case "RGBA" | "LA":
            return rgba.convert(kind)
        case "P" | "1" | "L":
            return rgba.convert("RGB").convert(kind)
        case "16 bit":
            return Image.fromarray(rng.integers(0, 2**16, (40, 60), dtype=np.uint16))
    turned = rgba.convert("RGB")
    turned.getexif()[0x0112] = 6
    return turned


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "1", "L", "16 bit", "turned"])
def test_python_sees_the_picture_that_the_jobs_see(demo_clip: pez.Clip, kind: str, tmp_path: Path) -> None:
    image = odd(kind)
    options: dict[str, Any] = {"exif": image.getexif()} if kind == "turned" else {}
    data = encoded(image, **options)
    (tmp_path / "image.png").write_bytes(data)
    of_job = demo_clip.pixel_features(demo_clip.preprocess(decode_image(data))[None])
    for given in (image, Image.open(tmp_path / "image.png"), tmp_path / "image.png"):
        assert torch.equal(demo_clip.image_features([given]), of_job)


def test_bools_and_grey_are_pictures() -> None:
    array = np.zeros((8, 9), bool)
    array[2] = True
    for given in (array, array[..., None], array.astype(float), array[None].transpose(1, 2, 0)):
        [image] = rgb_images(given)
        assert (image.mode, image.size) == ("RGB", (9, 8))
        assert np.array_equal(np.asarray(image)[..., 0], array * 255)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (torch.zeros(3, 8, 3), "both the first and the last dimension could be the channels"),
        (np.zeros((8, 9, 2)), "neither the first nor the last dimension is a number of channels"),
        (np.full((8, 9, 3), 200.0), "from 200 to 200; expected 0 to 1"),
        (torch.full((3, 8, 9), -1.0), "expected 0 to 1"),
        (np.full((8, 9, 3), np.nan), "from nan to nan; expected 0 to 1"),
        (np.full((8, 9, 3), 300), "expected 0 to 255"),
        (np.zeros(5), "an array of shape (5,)"),
        (np.zeros((0, 9, 3)), "an array of shape (0, 9, 3)"),
        (np.array([["a"]]), "expected bool, integers or floats"),
        ([[1, 2], [3, 4]], "type list; expected a file, a PIL image or an array"),
        (torch.zeros(8, 9, 3).to_sparse(), "a sparse tensor; expected a dense tensor with data"),
        (torch.zeros(8, 9, 3, device="meta"), "a meta tensor; expected a dense tensor with data"),
        ("", "(''): an empty path; expected an image file"),
        (None, "type NoneType; expected a file"),
        (b"no picture", "cannot decode the image"),
        ("nowhere.png", "('nowhere.png'): No such file"),
        (".", "a folder; expected an image file"),
    ],
)
def test_what_is_no_image_is_named_by_its_index(
    scene: Image.Image, demo_clip: pez.Clip, wrong: Any, words: str
) -> None:
    for learn in (pez.learn_prompts, pez.learn_prompt):
        with pytest.raises(ValueError, match=r"^images\[1\]") as error:
            learn(demo_clip, [scene, wrong], SETTINGS)
        assert words in str(error.value)
        assert "\n" not in str(error.value)


def test_images_that_are_no_images_at_all_are_refused(demo_clip: pez.Clip) -> None:
    with pytest.raises(ValueError, match="images is of type int; expected a file, a PIL image or an array"):
        pez.learn_prompts(demo_clip, 3, SETTINGS)  # type: ignore[arg-type]
    assert pez.learn_prompts(demo_clip, [], SETTINGS) == []
    assert pez.learn_prompts(demo_clip, iter(()), SETTINGS) == []


def modes() -> dict[str, Any]:
    return {
        "no_grad": torch.no_grad(),
        "inference_mode": torch.inference_mode(),
        "autocast": torch.autocast("cpu", torch.bfloat16),
    }


@pytest.mark.parametrize("mode", modes())
def test_a_mode_of_the_caller_changes_no_bit(demo_clip: pez.Clip, images: list[Image.Image], mode: str) -> None:
    def results(clip: pez.Clip) -> list[object]:
        one = pez.learn_prompt(clip, images[:2], SETTINGS, weights=[1, 0.5])
        return [pez.learn_prompts(clip, images[:3], SETTINGS), one, pez.distill(clip, "a large red circle", SETTINGS)]

    expected = results(demo_clip)
    features = demo_clip.image_features(images[:3])
    with modes()[mode]:
        assert results(demo_clip) == expected
        assert results(pez.load_demo_clip()) == expected, "loaded there too"
        assert torch.equal(demo_clip.image_features(images[:3]), features)
        enabled = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    assert (
        enabled
        == {"no_grad": (False, False, False), "inference_mode": (False, True, False), "autocast": (True, False, True)}[
            mode
        ]
    )
    assert results(demo_clip) == expected


NUMBERS = {
    f.name: f.type for f in dataclasses.fields(pez.PezSettings) if f.type in (int, float, int | None, float | None)
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name, kind in NUMBERS.items()
        for value in (math.nan, math.inf, True, "8", None, 1 + 2j)
        if value is not None or kind in (int, float)  # None = the default, where there is one
    ],
)
def test_numbers_that_are_none_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is .*; expected a (whole|finite) number"):
        pez.PezSettings(**dict[str, Any]({name: value}))


def test_other_settings_that_mean_nothing_are_refused() -> None:
    for name in ("tokens", "steps", "seed"):
        with pytest.raises(ValueError, match=f"{name} is 8.5; expected a whole number"):
            pez.PezSettings(**dict[str, Any]({name: 8.5}))
    with pytest.raises(ValueError, match="weight_decay is nan; expected a finite number"):
        pez.PezSettings(weight_decay=math.nan)
    with pytest.raises(ValueError, match="vocabulary is 'word'; expected one of model, words, full"):
        pez.PezSettings(vocabulary="word")  # type: ignore[arg-type]
    assert pez.PezSettings(tokens=np.int64(4)).tokens == 4  # type: ignore[arg-type]  # a number of NumPy is taken too


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1, math.nan], "expected finite numbers"),
        ([1, math.inf], "expected finite numbers"),
        ([0, 0.0], "all weights are 0"),
        ([1], "1 weights for 2 images"),
        ([1, "x"], "expected one number per image"),
        (2, "expected one number per image"),
    ],
)
def test_weights_that_mean_nothing_are_refused(demo_clip: pez.Clip, images: list, weights: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pez.learn_prompt(demo_clip, images[:2], SETTINGS, weights=weights)


def test_loads_in_threads_leave_the_logging_of_the_process_alone(caplog: pytest.LogCaptureFixture) -> None:
    root = logging.getLogger()
    before = root.manager.disable, root.level, list(root.handlers), list(root.filters)
    heard, stop = [], threading.Event()

    def speak() -> None:
        while not stop.wait(0.001):
            logging.warning("somebody else")  # by the root logger, as open_clip logs
            heard.append(1)

    with caplog.at_level(logging.WARNING):
        speaker = threading.Thread(target=speak)
        loads = [threading.Thread(target=pez.load_demo_clip) for _ in range(3)]
        for thread in (speaker, *loads):
            thread.start()
        for thread in loads:
            thread.join()
        stop.set()
        speaker.join()
        said = [record.getMessage() for record in caplog.records]
    assert (root.manager.disable, root.level, list(root.handlers), list(root.filters)) == before
    assert said.count("somebody else") == len(heard) > 3
    assert set(said) == {"somebody else"}, "of open_clip nothing"


def test_the_demo_is_a_name_like_others(demo_clip: pez.Clip, images: list[Image.Image]) -> None:
    for name, weights in (("demo", "laion2b_s32b_b79k"), ("demo", None), ("demo-judge", "whatever")):
        clip = pez.load_clip(name, weights)
        assert clip.name == name
        assert clip.recommended is not None
    assert torch.equal(pez.load_clip("demo").image_features(images[:1]), demo_clip.image_features(images[:1]))
