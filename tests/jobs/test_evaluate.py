"""The paper's table: what is asked for counts or is refused at once, and nothing is silent for minutes."""

import json
from pathlib import Path
from typing import Any

import pytest
from evaluate_jobs import Run, run_evaluate
from PIL import Image
from samples_on_disk import MakeTar, encoded

import pez
from pez.demo import scenes
from pez.regeneration import Generator, image_similarities, load_generator, seed_for

QUICK = ["--images", 2, "--steps", 2, "--swaps", 0, "--tokens", 4, "--verify-steps", 1, "--device", "cpu"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return run_evaluate(monkeypatch, capsys)


def figures(file: Path) -> dict[str, Any]:
    """What was written, by the kind of prompt, if it is JSON to everybody."""
    values = json.loads(file.read_text(), parse_constant=pytest.fail)
    return {outcome["prompts"]: outcome for outcome in values["outcomes"]}


def test_several_pictures_of_a_prompt_count_as_their_mean(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # where every figure can be read all the same
    status, told, _ = run("--demo", *QUICK, "--verify-images", 3, "--json", tmp_path / "figures.json")
    assert status == 0
    judge = pez.load_clip("demo-judge")
    generator = load_generator("demo", steps=1)
    originals = scenes.held_out_scenes(2)
    features = judge.image_features([Image.fromarray(scenes.render(scene)) for scene in originals])
    means = []
    for key, scene, feature in zip(("00000", "00001"), originals, features, strict=True):
        seeds = [seed_for(0, key, n) for n in range(3)]
        made = generator.images([scenes.caption(scene)] * 3, seeds)
        means.append(sum(s or 0 for s in image_similarities(judge, feature.expand(3, -1), made)) / 3)
    found = figures(tmp_path / "figures.json")["caption"]["regenerated"]
    assert found["mean"] == pytest.approx(sum(means) / 2, abs=1e-4)
    assert f"{found['mean']:.3f} ± {found['interval']:.3f}" in told


def test_it_tells_what_it_does_and_how_far_it_is(run: Run) -> None:
    status, told, errors = run("--demo", *QUICK, "--fluency", 0.1)
    assert (status, errors) == (0, "")
    assert "perplexity" in told
    doing = [
        "loading demo",
        "loading demo-judge",
        "learning 2 prompts",
        "generating from random",
        "generating from caption",
    ]
    assert [told.index(words) for words in doing] == sorted(told.index(words) for words in doing)


def test_one_picture_has_no_interval_and_figures_that_everybody_reads(run: Run, tmp_path: Path) -> None:
    status, told, _ = run("--demo", *QUICK, "--images", 1, "--json", tmp_path / "a.json", "--picture", tmp_path / "a.x")
    assert status == 0
    assert "nan" not in told
    assert figures(tmp_path / "a.json")["learned"]["guide"]["interval"] is None
    assert Image.open(tmp_path / "a.x").format == "PNG"


def test_pictures_that_are_all_blanked_are_told(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Generator, "images", lambda self, prompts, seeds: [None] * len(prompts))
    status, told, _ = run("--demo", *QUICK, "--json", tmp_path / "a.json")
    assert status == 0
    assert "6 images blanked by the safety checker" in told
    assert figures(tmp_path / "a.json")["learned"]["regenerated"] == {"mean": None, "interval": None}


def test_an_input_with_fewer_pictures_says_so(run: Run, make_tar: MakeTar, images: list[Image.Image]) -> None:
    tar = make_tar("in/a.tar", [("0.png", encoded(images[0])), ("bad.png", b"junk")])
    status, told, _ = run("--input", tar, "--model", "demo", "--verify", "demo", *QUICK)
    assert status == 0
    assert "note: the input has 1 image, fewer than --images 2" in told


def test_figures_that_cannot_be_written_in_the_end_are_shown_all_the_same(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    status, told, _ = run("--demo", *QUICK, "--json", tmp_path / "a.json")
    assert status == 1
    assert "learned" in told
    assert f"failed: cannot write {tmp_path}/a.json: No space left on device" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no input given; expected --input with the URL of a tar, or --demo"),
        (["--demo", "--input", "x.tar"], "--demo and --input are both given"),
        (["--demo", "--model", "ViT-H-14"], "--demo uses a demo model"),
        (["--demo", "--images", 0], "images is 0"),
        (["--demo", "--images", -3], "images is -3"),
        (["--demo", "--json", "{tmp}/gone/a.json"], "there is no folder {tmp}/gone"),
        (["--demo", "--picture", "{tmp}"], "a folder; expected the name of a file"),
        (["--demo", "--json", "{tmp}/a", "--picture", "{tmp}/a"], "expected two files"),
        (["--demo", "--keep-images"], "--keep-images"),
        (["--demo", "--verify-images", 0], "--verify-images is 0"),
        (["--demo", "--verify-precision", "fp16", "--device", "cpu"], "which a CPU does not support"),
        (["--demo", "--verify", "{tmp}"], "no pipeline in {tmp}"),
        (["--demo", "--verify-variant", "fp16"], "has no variant 'fp16'"),
        (["--demo", "--allowlist", "qqqqxzqq"], "'qqqqxzqq'"),
        (["--input", "{tmp}/gone.tar", "--model", "demo"], "no generator is named"),
        (["--input", "{tmp}/gone.tar", "--model", "demo", "--verify", "demo"], "gone.tar"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_any_work(
    run: Run, tmp_path: Path, words: list[object], message: str
) -> None:
    status, told, errors = run(*(str(word).format(tmp=tmp_path) for word in words))
    assert status == 2
    [line] = errors.splitlines()
    assert message.format(tmp=tmp_path) in line
    assert "learning" not in told
