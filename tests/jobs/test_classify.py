"""`pez classify`: a sweep, a given prompt, resume, and what is refused in one line."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs import classify, command
from jobs.classify import ClassifyJob
from pez.classification import SEARCH
from pez.demo.reviews import labelled_reviews

Run = Callable[..., tuple[int, str, str]]
FAST = [
    "--local", "--steps", 2, "--restarts", 2, "--search-examples", 8, "--candidates", 4, "--tokens", 4, "--random-prompts", 2,
    "--heldout-examples", 20, "--test-examples", 30,
]  # fmt: skip


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """run(words) -> status, output, errors."""

    def run_words(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["pez", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            command.run(ClassifyJob, classify.__doc__, classify.classify, "pez classify")
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return run_words


def table(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    return table(tmp_path / "reviews.csv", labelled_reviews(200, 7))


def test_a_sweep_has_a_row_for_every_restart_beside_empty_and_random_prompts(run: Run, tmp_path: Path) -> None:
    out, found = tmp_path / "out", tmp_path / "found.json"
    words = ["--demo", *FAST, "--method", "pez", "random", "--seed", 0, 1, "--output", out, "--json", found]
    status, printed, errors = run(*words)
    assert status == 0, errors
    rows: list[dict[str, Any]] = pq.read_table(out).to_pylist()
    kinds = [(row["method"], row["seed"], row["restart"]) for row in rows]
    searched = [(method, seed, restart) for method in ("pez", "random") for seed in (0, 1) for restart in (0, 1)]
    assert sorted(kinds, key=str) == sorted(
        [*searched, ("empty", None, None), ("random words", None, 0), ("random words", None, 1)], key=str
    )
    values = json.loads(found.read_text())
    learned = [row for row in rows if row["restart"] is not None and row["method"] != "random words"]
    best = max(learned, key=lambda row: (row["heldout_accuracy"], -row["heldout_loss"]))
    assert values["best"]["prompt"] == best["prompt"]
    assert values["best"]["accuracy"] == best["test_accuracy"]
    assert len(values["rows"]) == len(rows)
    assert (out / "_SUCCESS").exists()
    assert "PEZ, Algorithm 1" in printed
    assert "without a prompt" in printed


def test_a_second_run_does_nothing_and_adds_only_new_seeds(run: Run, tmp_path: Path) -> None:
    words = ["--demo", *FAST, "--method", "random", "--output", tmp_path / "out"]
    assert run(*words)[0] == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    status, printed, _ = run(*words)
    assert status == 0
    assert "nothing to do: all 2 units are done" in printed
    assert run(*words, "--seed", 0, 5)[0] == 0
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1


def test_an_output_with_other_settings_is_refused(run: Run, tmp_path: Path) -> None:
    words = ["--demo", *FAST, "--method", "random", "--output", tmp_path / "out"]
    assert run(*words)[0] == 0
    status, _, errors = run(*words, "--tokens", 5)
    assert status == 2
    assert "tokens was 4 and is 5" in errors


def test_searches_of_another_precision_are_not_mixed(run: Run, tmp_path: Path) -> None:
    words = ["--demo", *FAST, "--output", tmp_path / "out"]
    status, _, errors = run(*words, "--precision", "bf16")
    assert status == 0, errors
    status, _, errors = run(*words)
    assert status == 2
    assert "precision was 'bf16' and is not set" in errors


def test_an_output_of_another_version_of_the_searches_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--demo", *FAST, "--method", "random", "--output", tmp_path / "out"]
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.classified.SEARCH", SEARCH - 1)
        assert run(*words)[0] == 0
    status, _, errors = run(*words, "--seed", 5)
    assert status == 2
    assert "was written by another version of this project" in errors
    assert len(errors.strip().splitlines()) == 1


def test_a_given_prompt_is_measured_beside_the_empty_one_and_under_another_model(
    run: Run, reviews: Path, tmp_path: Path
) -> None:
    found = tmp_path / "found.json"
    words = ["--data", reviews, "--prompt", "honest fair verdict", "--json", found, "--score-model", "demo-lm"]
    status, _, errors = run(*words)
    assert status == 0, errors
    values = json.loads(found.read_text())
    assert values["examples"] == 200
    assert values["accuracy"] > values["empty_accuracy"] + 0.1
    assert values["score_models"]["demo-lm"]["accuracy"] == values["accuracy"]


@pytest.mark.slow
def test_a_sweep_on_ray_finds_the_prompts_of_one_without(run: Run, ray_cluster: None, tmp_path: Path) -> None:
    words = [*FAST[1:], "--demo", "--device", "cpu"]
    assert run(*words, "--output", tmp_path / "a", "--actors", 1)[0] == 0
    assert run(*words, "--output", tmp_path / "b", "--local")[0] == 0
    prompts = [pq.read_table(tmp_path / name).sort_by("prompt")["prompt"].to_pylist() for name in "ab"]
    assert prompts[0] == prompts[1]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([("fine", "positive"), ("", "negative")], [], "the text of row 1 of"),
        (
            [("fine", "positive"), ("poor", "mixed")],
            [],
            "has the label 'mixed', and the verbalizer has negative, positive",
        ),
        ([("fine", "positive"), ("good", "positive")], [], "has the label 'positive'; expected two labels or more"),
        ([("fine", "positive"), ("poor", "negative")], [], "lack a label; expected more data, of every label"),
        ([("fine", "positive")], ["--text-field", "body"], "has no field 'body'; it has 'text', 'label'"),
        ([("fine", "positive")], ["--verbalizer", "negative=bad,positive=bad"], "has the word 'bad' twice"),
        ([("fine", "positive")], ["--template", "{text} {label}"], "expected one like"),
        ([("fine", "positive")], ["--prompt", "a", "--steps", 3], "--steps has no effect with --prompt"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    run: Run, tmp_path: Path, rows: list[tuple[str, str]], options: list[object], message: str
) -> None:
    status, _, errors = run("--local", "--data", table(tmp_path / "t.csv", rows), *options)
    assert status == 2
    assert len(errors.splitlines()) == 1
    assert message in errors


def test_a_word_of_several_tokens_is_refused_in_one_line(run: Run, reviews: Path) -> None:
    status, _, errors = run("--local", "--data", reviews, "--verbalizer", "negative=terrible,positive=splendiferous")
    assert status == 2
    assert "the word 'splendiferous' of the label 'positive'" in errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no data given; expected --data TABLE, --task sst2, or --demo"),
        (["--data", "none.parquet"], "there is no file none.parquet"),
        (["--task", "imdb"], "--task is 'imdb'; expected one of sst2, agnews, amazon"),
        (["--demo", "--model", "gpt2"], "--model has no effect with --demo"),
        (["--demo", "--model-width", 3], "unknown option"),
    ],
)
def test_a_command_line_without_meaning_is_refused(run: Run, words: list[object], message: str) -> None:
    status, _, errors = run(*words)
    assert status == 2
    assert message in errors
