"""Models load by every kind of name, and what does not load says why in one line."""

import json
import warnings
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

import pez
from pez.demo import GUIDE

CONFIG = json.loads((GUIDE / "open_clip_config.json").read_text())["model_cfg"]


@pytest.fixture
def small_model(tmp_path: Path) -> str:
    """The demo's architecture as an open_clip name."""
    (tmp_path / "pez-test-small.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(tmp_path / "pez-test-small.json")
    return "pez-test-small"


def test_a_local_checkpoint_file_is_a_tag(small_model: str) -> None:
    clip = pez.load_clip(small_model, str(GUIDE / "open_clip_model.safetensors"))
    demo = pez.load_demo_clip()
    torch.testing.assert_close(clip.text_features(["a red circle"]), demo.text_features(["a red circle"]))


def test_a_torch_checkpoint_loads_without_running_code(small_model: str, tmp_path: Path) -> None:
    torch.save(load_file(GUIDE / "open_clip_model.safetensors"), tmp_path / "weights.pt")
    clip = pez.load_clip(small_model, str(tmp_path / "weights.pt"))
    demo = pez.load_demo_clip()
    torch.testing.assert_close(clip.text_features(["a red circle"]), demo.text_features(["a red circle"]))


def test_a_pickle_with_code_is_refused(small_model: str, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("it ran",)

    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match="cannot load 'pez-test-small'"):
        pez.load_clip(small_model, str(tmp_path / "bomb.pt"))


def test_no_weights_are_random_with_a_warning(small_model: str) -> None:
    with pytest.warns(UserWarning, match="RANDOM weights"):
        pez.load_clip(small_model, "none")


def test_a_folder_loads_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pez.load_clip(f"local-dir:{GUIDE}").name.startswith("local-dir:")


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ValueError, match="no model 'ViT-H-41'; expected demo, hf-hub:ORG/REPO, local-dir:FOLDER or"):
        pez.load_clip("ViT-H-41", "none")


def test_a_missing_checkpoint_is_named() -> None:
    with pytest.raises(
        ValueError, match="no weights 'laion9b' for ViT-H-14; expected a checkpoint file, none, or one of"
    ):
        pez.load_clip("ViT-H-14", "laion9b")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="open_clip_config.json; expected an open_clip folder"):
        pez.load_clip(f"local-dir:{tmp_path}")


def test_weights_that_do_not_fit_say_which_shapes(small_model: str, tmp_path: Path) -> None:
    weights = load_file(GUIDE / "open_clip_model.safetensors")
    weights["text_projection"] = torch.zeros(64, 32)
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"text_projection.*torch.Size\(\[64, 32\]\).*torch.Size\(\[64, 64\]\)"):
        pez.load_clip(small_model, str(tmp_path / "other.safetensors"))


def test_features_do_not_depend_on_neighbours(demo_clip: pez.Clip, images: list) -> None:
    together = demo_clip.image_features(images[:21])
    assert torch.equal(together[20], demo_clip.image_features([images[20]])[0])
    assert torch.equal(together[3], demo_clip.image_features(images[3:9])[0])
