"""`--template`: fixed words around the prompts of a job."""

import json
from pathlib import Path

import pytest
from caption_jobs import Run, rows_of, run_caption

import pez


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return run_caption(monkeypatch, capsys)


def test_the_prompt_column_holds_the_whole_text(
    run: Run, scene_tars: list[str], tmp_path: Path, demo_clip: pez.Clip, images: list
) -> None:
    status, _, errors = run("--input", scene_tars[0], "--output", tmp_path / "out", "--template", "a huge {} at night")
    assert status == 0, errors
    rows = rows_of(tmp_path / "out")
    features = demo_clip.image_features(images[:4])
    for feature, row in zip(features, (rows[key] for key in sorted(rows)), strict=True):
        assert row["prompt"].startswith("a huge ")
        assert row["prompt"].endswith(" at night")
        assert row["prompt"] == f"a huge {demo_clip.text_of(row['token_ids'])} at night"
        assert float(feature @ demo_clip.text_features([row["prompt"]])[0]) == pytest.approx(
            row["similarity"], abs=1e-5
        )
    settings = json.loads((tmp_path / "out" / "_run.json").read_text())["settings"]
    assert settings["method"]["template"] == "a huge {} at night"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "a tiger",
            "error: --template is 'a tiger', without {}; expected it once, as in 'a tiger in the style of {}'\n",
        ),
        ("{} {}", "error: --template is '{} {}', with 2 of {}; expected it once, as in 'a tiger in the style of {}'\n"),
        (
            "a red circle on " * 7 + "{}",
            "error: 3 tokens do not fit demo; its context of 32 has room for 1 to 2\n",
        ),
        ("a red circle on " * 8 + "{}", "error: the template leaves no room for a prompt in demo, whose context is 32"),
        (
            "a red circle on " * 12 + "{}",
            "error: the template has 'a red circle on a red circle on a red ci'..., 48 tokens",
        ),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line_before_any_work(
    run: Run, scene_tars: list[str], tmp_path: Path, template: str, words: str
) -> None:
    status, _, errors = run("--input", scene_tars[0], "--output", tmp_path / "out", "--template", template)
    assert status == 2
    assert errors.startswith(words)
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()
