"""`--method` in `caption` and `invert`."""

import sys
from pathlib import Path

import pytest
from samples_on_disk import MakeTar, encoded

import pez
from jobs import caption, command, invert
from pez.demo import scenes
from pez.methods.names import Method
from pipeline.description import describe
from pipeline.settings import CaptionSettings


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    file = tmp_path / "phrases.txt"
    file.write_text("\n".join(scenes.phrases()), encoding="utf-8")
    return file


def status_of(monkeypatch: pytest.MonkeyPatch, job: object, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pez", *map(str, words)])
    options, work = (invert.InvertJob, invert.invert) if job is invert else (caption.CaptionJob, caption.caption)
    with pytest.raises(SystemExit) as ended:
        command.run(options, None, work)  # type: ignore[arg-type]
    return int(ended.value.code or 0)


@pytest.mark.parametrize("method", ["soft", "bank", "gcg"])
def test_a_job_learns_with_any_method(
    make_tar: MakeTar,
    images: list,
    tmp_path: Path,
    bank: Path,
    monkeypatch: pytest.MonkeyPatch,
    demo_clip: pez.Clip,
    method: Method,
) -> None:
    import pyarrow.parquet as pq

    tar = make_tar("in/a.tar", [(f"{i}.png", encoded(images[i])) for i in range(3)])
    own = ["--bank", f"@{bank}"] if method == "bank" else ["--steps", 5]
    words = [
        "--input",
        tar,
        "--output",
        tmp_path / "out",
        "--model",
        "demo",
        "--local",
        "--device",
        "cpu",
        "--method",
        method,
    ]
    assert status_of(monkeypatch, caption, *words, "--tokens", 4, *own) == 0
    settings = pez.PezSettings(
        tokens=4, method=method, **({"bank": (f"@{bank}",)} if own[0] == "--bank" else {"steps": 5})
    )
    expected = pez.learn_prompts(demo_clip, images[:3], settings, ["0", "1", "2"])
    rows = pq.read_table(tmp_path / "out" / "a.parquet").to_pylist()
    assert [row["prompt"] for row in rows] == [prompt.text for prompt in expected]
    assert [row.get("soft_similarity") for row in rows] == pytest.approx(
        [prompt.soft_similarity for prompt in expected]
    )
    # A bank of 100,000 phrases is one line of the settings.
    written = (tmp_path / "out" / "_run.json").read_text()
    assert (f"{len(scenes.phrases())} phrases, sha256 " in written) == (method == "bank")
    assert status_of(monkeypatch, caption, *words, "--tokens", 4, *own) == 0  # nothing to do


def test_invert_tells_what_is_left_of_a_soft_prompt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(monkeypatch, invert, "--demo", "--method", "soft", "--steps", 3, "--device", "cpu") == 0
    assert "soft prompts before their projection: 0." in capsys.readouterr().out


def test_an_unknown_method_is_one_line_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for job in (caption, invert):
        assert (
            status_of(monkeypatch, job, "--demo", "--output" if job is caption else "--device", "cpu", "--method", "x")
            == 2
        )
        out, errors = capsys.readouterr()
        assert out == ""
        [line] = errors.splitlines()
        assert "'x'" in line
        assert "fluentprompt" in line


def test_the_default_learning_rate_may_be_named_when_a_job_is_resumed() -> None:
    """It was a number of the settings before every method had its own."""
    settings = CaptionSettings(model="demo")
    plain, named, other = (describe(settings, pez.PezSettings(learning_rate=rate), "cpu") for rate in (None, 0.1, 0.2))
    assert named == plain
    assert other["method"] == {"learning_rate": 0.2}
