"""`pez invert` with weights, texts and mixtures."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import pez
from jobs import command, invert
from jobs.invert import InvertJob

FAST = ["--model", "demo", "--tokens", "3", "--steps", "10", "--swaps", "2"]
SETTINGS = pez.PezSettings(tokens=3, steps=10, swaps=2)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run_words(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pez", *map(str, words), *FAST])
        with pytest.raises(SystemExit) as ended:
            command.run(InvertJob, invert.__doc__, invert.invert, "pez invert")
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return run_words


@pytest.fixture
def files(images: list[Image.Image], tmp_path: Path) -> list[Path]:
    for i in range(2):
        images[i].save(tmp_path / f"{i}.png")
    return [tmp_path / "0.png", tmp_path / "1.png"]


def test_each_part_of_a_target_is_shown(
    run: Run, files: list[Path], demo_clip: pez.Clip, images: list[Image.Image]
) -> None:
    status, out, errors = run(*files, "--together", "--text", "a red star", "--weights", 1, 0.5, -0.3)
    assert status == 0, errors
    prompt = pez.learn_prompt(demo_clip, images[:2], SETTINGS, [1, 0.5, -0.3], texts=["a red star"])
    *_, row, _, first, second, third = out.splitlines()
    assert prompt.text in row
    assert f"{prompt.similarity:.3f}" in row
    names, weights = ("0.png", "1.png", "a red star"), ("1", "0.5", "-0.3")
    shown = zip((first, second, third), names, weights, prompt.target_similarities, strict=True)
    for line, name, weight, similarity in shown:
        assert line.split() == [*name.split(), weight, f"{similarity:.3f}"]


def test_a_mixture_is_shown_with_the_similarity_to_each_image(
    run: Run, files: list[Path], demo_clip: pez.Clip, images: list[Image.Image]
) -> None:
    status, out, errors = run(*files, "--mix")
    assert status == 0, errors
    mixture = pez.mix(demo_clip, images[:2], SETTINGS)
    *_, header, first, second, joined, shared = out.splitlines()
    assert header.split() == ["prompt", "of", "prompt", "to", "0.png", "to", "1.png"]
    for line, prompt in zip(
        (first, second, joined, shared), (*mixture.prompts, mixture.joined, mixture.shared), strict=True
    ):
        assert prompt.text in line
        assert line.split()[-2:] == [f"{similarity:.3f}" for similarity in prompt.target_similarities]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--together", "--weights", 1], "error: 1 weights for 2 images; expected one each\n"),
        (
            ["--together", "--text", "a", "--weights", 1, 1],
            "error: 2 weights for 2 images and 1 texts; expected one each\n",
        ),
        (
            ["--together", "--weights", 0, 0],
            "error: all weights are 0; expected at least one other value (negative = repel)\n",
        ),
        (["--weights", 1, 1], "error: --weights has no effect without --together\n"),
        (["--together", "--mix"], "error: --together and --mix are both given; expected one of them\n"),
    ],
)
def test_targets_that_make_no_sense_are_one_line(
    run: Run, files: list[Path], words: list[object], message: str
) -> None:
    status, _, errors = run(*files, *words)
    assert (status, errors) == (2, message)


def test_one_image_is_no_mixture(run: Run, files: list[Path]) -> None:
    status, _, errors = run(files[0], "--mix")
    assert (status, errors) == (2, "error: --mix has 1 image; expected two or more\n")
