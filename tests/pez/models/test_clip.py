"""Models load by every kind of name, and what does not load says why in one line."""

import ast
import json
import shutil
import warnings
from pathlib import Path

import open_clip
import pytest
import torch
from running import ROOT
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


class Trap:
    """A pickle of it makes a file where it is loaded with code allowed."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("content", ["weights", "all"])
def test_a_pickle_with_code_is_refused(small_model: str, tmp_path: Path, content: str) -> None:
    trap = Trap(tmp_path / "trace")
    torch.save({"state_dict": trap} if content == "weights" else trap, tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match="holds code or objects other than tensors; expected safetensors") as error:
        pez.load_clip(small_model, str(tmp_path / "bomb.pt"))
    assert str(error.value).isprintable()
    assert not trap.trace.exists()
    torch.load(tmp_path / "bomb.pt", weights_only=False)
    assert trap.trace.exists(), "the trap works"


@pytest.mark.parametrize("ending", ["bin", "pth"])
def test_a_pickle_with_code_in_a_folder_is_refused(tmp_path: Path, ending: str) -> None:
    shutil.copy(GUIDE / "open_clip_config.json", tmp_path)
    trap = Trap(tmp_path / "trace")
    torch.save({"state_dict": trap}, tmp_path / f"open_clip_pytorch_model.{ending}")
    with pytest.raises(ValueError, match="cannot load 'local-dir:"):
        pez.load_clip(f"local-dir:{tmp_path}")
    assert not trap.trace.exists()


def test_a_folder_with_plain_tensors_loads(tmp_path: Path) -> None:
    shutil.copy(GUIDE / "open_clip_config.json", tmp_path)
    torch.save(load_file(GUIDE / "open_clip_model.safetensors"), tmp_path / "open_clip_pytorch_model.bin")
    clip, demo = pez.load_clip(f"local-dir:{tmp_path}"), pez.load_demo_clip()
    torch.testing.assert_close(clip.text_features(["a red circle"]), demo.text_features(["a red circle"]))


def test_a_configuration_that_asks_to_run_code_is_refused(tmp_path: Path) -> None:
    config = json.loads((GUIDE / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    shutil.copy(GUIDE / "open_clip_model.safetensors", tmp_path)
    with pytest.raises(ValueError, match="sets trust_remote_code; code that comes with a model is never run"):
        pez.load_clip(f"local-dir:{tmp_path}")


def test_no_source_loads_a_pickle_or_trusts_remote_code() -> None:
    sources = [p for folder in ("pez", "pipeline", "jobs") for p in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 20
    for path in sources:
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            called = ast.unparse(call.func)
            where = f"{path.name}:{call.lineno}"
            assert given.get("trust_remote_code", "False") == "False", where
            assert given.get("allow_pickle", "False") == "False", where
            assert given.get("weights_only", "True") == "True", where
            assert called not in ("pickle.load", "pickle.loads", "joblib.load", "torch.jit.load"), where
            assert called != "torch.load" or given.get("weights_only") == "True", where


@pytest.mark.parametrize(
    "content", [b"", b"junk" * 100, b"\x08\0\0\0\0\0\0\0{}      ", None], ids=["empty", "junk", "no tensors", "cut"]
)
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_damaged_checkpoint_is_one_line(small_model: str, tmp_path: Path, content: bytes | None, ending: str) -> None:
    path = tmp_path / f"weights.{ending}"
    if content is None:
        whole = load_file(GUIDE / "open_clip_model.safetensors")
        save_file(whole, path) if ending == "safetensors" else torch.save(whole, path)
        content = path.read_bytes()[:100_000]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"cannot load 'pez-test-small' with weights .*weights.{ending}: .+") as error:
        pez.load_clip(small_model, str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(small_model: str, tmp_path: Path, value: float) -> None:
    weights = load_file(GUIDE / "open_clip_model.safetensors")
    weights["text_projection"][3, 5] = value
    save_file(weights, tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match="1 of 4096 numbers in text_projection are not finite; download"):
        pez.load_clip(small_model, str(tmp_path / "nan.safetensors"))


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
