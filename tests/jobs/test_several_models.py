"""`--model demo demo-judge`: one prompt for several models."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

import pez
from jobs import arguments, caption, command, invert
from jobs.caption import CaptionJob
from jobs.invert import InvertJob
from pez.errors import UserError
from pez.models.names import guides_of
from pez.settings import ModelSettings

FAST = ["--tokens", "3", "--steps", "10", "--swaps", "2"]


def run(
    words: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], job: Any = caption
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["pez", *map(str, words)])
    jobs: dict[Any, tuple[type[Any], Callable[[Any], int]]] = {
        caption: (CaptionJob, caption.caption),
        invert: (InvertJob, invert.invert),
    }
    options, work = jobs[job]
    with pytest.raises(SystemExit) as ended:
        command.run(options, job.__doc__, work, "pez")
    assert isinstance(ended.value.code, int)
    return ended.value.code, *capsys.readouterr()


def test_rows_tell_the_similarity_under_each_model(
    scene_tars: list[str],
    tmp_path: Path,
    demo_clip: pez.Clip,
    images: list[Image.Image],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--input", scene_tars[0], "--output", tmp_path / "out", "--model", "demo", "demo-judge", *FAST]
    words += ["--model-weights", 1, 3, "--local", "--parts", 2]
    status, _, errors = run(words, monkeypatch, capsys)
    assert status == 0, errors
    judge = pez.load_clip("demo-judge")
    rows = pq.read_table(tmp_path / "out").sort_by("key").to_pylist()
    assert len(rows) == 4
    for row, image in zip(rows, images, strict=False):
        each = [
            float(clip.text_features([row["prompt"]])[0] @ clip.image_features([image])[0])
            for clip in (demo_clip, judge)
        ]
        assert row["model_similarities"] == pytest.approx(each, abs=1e-5)
        assert row["similarity"] == pytest.approx((each[0] + 3 * each[1]) / 4, abs=1e-5)
        assert row["model"] == "demo + demo-judge"
    described = json.loads((tmp_path / "out" / "_run.json").read_text())["settings"]["model"]
    assert described == {"model": ["demo", "demo-judge"], "model_weights": [1.0, 3.0]}
    assert "nothing to do" in run(words, monkeypatch, capsys)[1]
    other = [word for word in words if word != "demo-judge"][: words.index("--model-weights") - 1]
    status, _, errors = run([*other, "--local"], monkeypatch, capsys)
    assert status == 2
    assert "model was ['demo', 'demo-judge'] and is 'demo'" in errors


def test_invert_learns_for_several_models(
    tmp_path: Path, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images[0].save(tmp_path / "a.png")
    status, out, errors = run(["--model", "demo", "demo-judge", tmp_path / "a.png", *FAST], monkeypatch, capsys, invert)
    assert status == 0, errors
    judge, guide = pez.load_clip("demo-judge"), pez.load_demo_clip()
    [prompt] = pez.learn_prompts([guide, judge], images[0], pez.PezSettings(tokens=3, steps=10, swaps=2))
    *_, row, header, by_model = out.splitlines()
    assert f"{prompt.similarity:.3f}" in row
    assert prompt.text in row
    assert header.split()[2:] == ["under", "demo", "under", "demo-judge"]
    assert by_model.split() == ["a.png", *(f"{similarity:.3f}" for similarity in prompt.model_similarities)]


def test_images_may_follow_the_names_of_models() -> None:
    def read(*words: str) -> InvertJob:
        return arguments.read(InvertJob, "", "pez invert", words)

    job = read("--model", "demo", "a.JPG", "http://x/b", "*.png")
    assert (job.images, job.model.model) == (("a.JPG", "http://x/b", "*.png"), "demo")
    job = read("a.jpg", "--model", "ViT-L-14", "ViT-bigG-14", "--pretrained", "openai", "laion2b_s39b_b160k", "b.jpg")
    assert job.images == ("a.jpg", "b.jpg")
    assert job.model.models == ("ViT-L-14", "ViT-bigG-14")
    assert job.model.pretrained == ("openai", "laion2b_s39b_b160k")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--model ViT-L-14 ViT-bigG-14",
            "--pretrained has 1 value for ViT-L-14, ViT-bigG-14; expected one tag or file for",
        ),
        ("--model ViT-L-14 ViT-bigG-14 --pretrained openai a b", "--pretrained has 3 values for ViT-L-14, ViT-bigG-14"),
        (
            "--model demo demo-judge --pretrained openai",
            "--pretrained has no effect with --model demo demo-judge, which",
        ),
        ("--model demo demo-judge --model-weights 1", "--model-weights are 1 for 2 models; expected one each"),
        ("--model demo demo-judge --model-weights 1 -1", "--model-weights are [1.0, -1.0]; expected numbers above 0"),
        (
            "--demo --model demo ViT-L-14 --pretrained openai",
            "--demo uses a demo model, but --model is demo + ViT-L-14",
        ),
    ],
)
def test_models_that_cannot_be_joined_are_one_line(words: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        arguments.read(CaptionJob, "", "pez caption", ["--output", "out", *words.split()])
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_weights_belong_to_the_names_that_need_them() -> None:
    settings = ModelSettings(model=("demo", "ViT-L-14", "hf-hub:a/b", "ViT-bigG-14"), pretrained=("openai", "x"))
    assert guides_of(settings) == [
        ("demo", "none"), ("ViT-L-14", "openai"), ("hf-hub:a/b", "none"), ("ViT-bigG-14", "x"),
    ]  # fmt: skip
    assert ModelSettings(model=("demo",)) == ModelSettings(model="demo")
