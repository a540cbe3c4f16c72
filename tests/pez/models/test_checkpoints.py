"""A checkpoint file is what its tag is, and a row's `model` names what anyone can load with open_clip alone."""

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import pretrained as known_weights
from open_clip.transform import PreprocessCfg
from PIL import Image
from safetensors.torch import save_file

import pez
from pez.models.load import check_model, find

SMALL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
}
TAGS: dict[str, dict[str, Any]] = {
    "openai": {"quick_gelu": True, "url": "https://openaipublic.azureedge.net/clip/models/{hash}/x.pt"},
    "inception": {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "resize_mode": "squash"},
    "hub": {"mean": (0.1,) * 3, "hf_hub": "org/some-model/"},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The weights of a small model."""
    torch.manual_seed(0)
    model = open_clip.CLIP(embed_dim=16, vision_cfg=SMALL["vision_cfg"], text_cfg=SMALL["text_cfg"])
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)  # so that the activation matters
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


@pytest.fixture
def small(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model whose tags open_clip knows as it knows ViT-L-14's, and loads from a file on this disk."""
    for name in ("pez-known", "pez-known-quickgelu"):
        (tmp_path / f"{name}.json").write_text(json.dumps(SMALL | {"quick_gelu": name.endswith("gelu")}))
        open_clip.add_model_config(tmp_path / f"{name}.json")
    tags = {tag: known_weights._pcfg(file=str(file), **config) for tag, config in TAGS.items()}
    monkeypatch.setitem(known_weights._PRETRAINED, "pez-known", tags)
    quick = {tag: config for tag, config in tags.items() if config.get("quick_gelu")}
    monkeypatch.setitem(known_weights._PRETRAINED, "pez-known-quickgelu", quick)
    return "pez-known"


def features(clip: pez.Clip, images: list[Image.Image]) -> torch.Tensor:
    wide = [image.resize((80, 50)) for image in images[:3]]
    return torch.cat([clip.image_features(wide), clip.text_features(["a red circle", "wavy"])])


@pytest.mark.parametrize("tag", TAGS)
def test_a_file_with_its_tag_is_the_tag(small: str, file: Path, images: list[Image.Image], tag: str) -> None:
    check_model(small, f"{tag}={file}", 8)
    of_tag, of_file = pez.load_clip(small, tag), pez.load_clip(small, f"{tag}={file}")
    assert torch.equal(features(of_file, images), features(of_tag, images))
    assert of_file.name == of_tag.name
    with pytest.warns(UserWarning, match="the weights in .* are unknown"):
        plain = pez.load_clip(small, str(file))
    assert not torch.equal(features(plain, images), features(of_tag, images)), "the test sees a difference"


@pytest.mark.parametrize("tag", TAGS)
def test_what_a_row_names_gives_its_similarity_with_open_clip_alone(
    small: str, file: Path, images: list[Image.Image], tag: str
) -> None:
    clip = pez.load_clip(small, f"{tag}={file}")
    [prompt] = pez.learn_prompts(clip, images[:1], pez.PezSettings(tokens=4, steps=5, swaps=2))
    name, pretrained = clip.name.split("/")
    assert name == ("pez-known-quickgelu" if tag == "openai" else "pez-known")
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained)
    tokenizer = open_clip.get_tokenizer(name)
    image = model.eval().encode_image(preprocess(images[0])[None], normalize=True)
    of_text = model.encode_text(tokenizer([prompt.text]), normalize=True)
    assert float(image @ of_text.T) == pytest.approx(prompt.similarity, abs=1e-5)


def test_a_file_is_known_by_its_hash(
    small: str, file: Path, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    tags = known_weights._PRETRAINED[small]
    url = f"https://github.com/mlfoundations/open_clip/releases/download/v0/b-inception-{digest[:8]}.pt"
    monkeypatch.setitem(tags, "inception", tags["inception"] | {"url": url})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = pez.load_clip(small, str(file))
    assert torch.equal(features(clip, images), features(pez.load_clip(small, "inception"), images))
    assert clip.name == f"{small}/inception"
    openai = TAGS["openai"]["url"].format(hash=digest)
    monkeypatch.setitem(tags, "openai", tags["openai"] | {"url": openai})
    monkeypatch.setitem(tags, "inception", tags["inception"] | {"url": ""})
    assert pez.load_clip(small, str(file)).name == f"{small}-quickgelu/openai"


def test_a_file_is_known_by_its_place_in_the_hubs_cache(
    small: str, file: Path, images: list[Image.Image], tmp_path: Path
) -> None:
    snapshot = tmp_path / "hub" / "models--org--some-model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    shutil.copy(file, snapshot / "open_clip_model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = pez.load_clip(small, str(snapshot / "open_clip_model.safetensors"))
    assert torch.equal(features(clip, images), features(pez.load_clip(small, "hub"), images))


def test_a_configuration_beside_a_file_is_read(small: str, file: Path, images: list[Image.Image]) -> None:
    of_openai = dataclasses.asdict(PreprocessCfg()) | {"size": 32}
    config = {"model_cfg": SMALL | {"quick_gelu": True}, "preprocess_cfg": of_openai}
    (file.parent / "open_clip_config.json").write_text(json.dumps(config))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = pez.load_clip(small, str(file))
    assert torch.equal(features(clip, images), features(pez.load_clip(small, "openai"), images))
    assert torch.equal(features(clip, images), features(pez.load_clip(f"local-dir:{file.parent}"), images))


def test_what_was_assumed_is_one_line(small: str, file: Path) -> None:
    with pytest.warns(UserWarning, match="assuming") as caught:
        pez.load_clip(small, str(file))
    [line] = [str(warning.message) for warning in caught]
    assert line == (
        f"the weights in {file} are unknown: assuming GELU, mean 0.481/0.458/0.408, std 0.269/0.261/0.276,"
        f" interpolation bicubic, resize_mode shortest; if they belong to a known tag, use TAG={file}"
        " with one of openai, inception, hub"
    )


def test_weights_of_a_model_whose_tags_agree_are_taken_as_theirs(file: Path) -> None:
    source = find("ViT-B-16-SigLIP", str(file))
    assert source.preprocessing["resize_mode"] == "squash"
    assert source.preprocessing["mean"] == (0.5, 0.5, 0.5)
    assert source.assumed is not None
    assert "resize_mode squash" in source.assumed


@pytest.mark.parametrize(
    ("pretrained", "words"),
    [
        ("openai=nowhere.pt", "no file 'nowhere.pt' with the weights openai of pez-known"),
        ("other={file}", "no weights 'other=.*' for pez-known; expected a checkpoint file, none, or one of openai"),
        (
            "nowhere.pt",
            "no weights 'nowhere.pt' for pez-known; expected a checkpoint file, none, or one of .*or TAG=FILE",
        ),
    ],
)
def test_a_file_or_tag_that_is_not_there_is_refused(small: str, file: Path, pretrained: str, words: str) -> None:
    for refuses in (pez.load_clip, lambda name, weights: check_model(name, weights, 8)):
        with pytest.raises(ValueError, match=words):
            refuses(small, pretrained.format(file=file))


@pytest.mark.parametrize("name", ["hf-hub:", "local-dir:"])
def test_a_kind_of_model_without_its_name_is_refused(name: str) -> None:
    for refuses in (lambda: pez.load_clip(name), lambda: check_model(name, None, 8)):
        with pytest.raises(ValueError, match=f"'{name}' names no model; expected hf-hub:ORG/REPO"):
            refuses()


def test_every_quickgelu_tag_of_open_clip_has_a_name_that_says_so() -> None:
    for name, tag in open_clip.list_pretrained():
        config = open_clip.get_pretrained_cfg(name, tag)
        source = find(name, tag)
        built, _, label = source.name, source.weights, source.label
        assert label == f"{built}/{tag}"
        assert open_clip.get_pretrained_cfg(built, tag) == config
        if config.get("quick_gelu"):
            assert open_clip.get_model_config(built)["quick_gelu"], name
    assert find("ViT-L-14", "openai").label == "ViT-L-14-quickgelu/openai"
