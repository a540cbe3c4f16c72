"""`pez distill`: texts of the command line, tables, and what is refused in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import pez
from jobs import arguments, caption, command, distill
from jobs.distill import DistillJob
from pez.errors import UserError

TEXTS = ["a big solid orange triangle at the bottom right of a wavy yellow scene", "a little blue square on brown"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """run(words) -> status, output, errors."""

    def run_words(*words: object, job: Any = distill) -> tuple[int, str, str]:
        options, work = (DistillJob, distill.distill) if job is distill else (caption.CaptionJob, caption.caption)
        monkeypatch.setattr("sys.argv", ["pez", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            command.run(options, job.__doc__, work, "pez")
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return run_words


def rows(folder: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(folder).sort_by("key").to_pylist())


FAST = ["--model", "demo", "--tokens", 4, "--steps", 20, "--swaps", 4]


def test_texts_of_the_command_line_are_shortened(run: Run, demo_clip: pez.Clip) -> None:
    status, out, errors = run("--text", *TEXTS, *FAST)
    assert status == 0, errors
    settings = pez.PezSettings(tokens=4, steps=20, swaps=4)
    for line, text in zip(out.splitlines()[-2:], TEXTS, strict=True):
        prompt = pez.distill(demo_clip, text, settings)
        assert prompt.text in line
        assert f"{prompt.similarity:.3f}" in line


def test_the_demo_shortens_captions_of_drawn_scenes(run: Run) -> None:
    status, out, _ = run("--demo", "--tokens", 2, "--steps", 4, "--swaps", 0)
    assert status == 0
    assert len(out.splitlines()[-5:]) == 5
    assert out.splitlines()[-5].split() == ["text", "prompt", "similarity"]


def test_no_text_is_one_line() -> None:
    with pytest.raises(
        UserError, match="no text given; expected --text 'a long prompt', --input TABLE --output OUT, or"
    ):
        arguments.read(DistillJob, "", "pez distill", [])


def test_a_text_that_is_empty_is_one_line(run: Run) -> None:
    status, _, errors = run("--text", " ", *FAST)
    assert (status, errors) == (2, "error: --text is empty; expected something, or leave the option out\n")
