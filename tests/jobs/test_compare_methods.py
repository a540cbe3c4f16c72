"""`evaluate --methods` and `--lengths`: every method at equal cost, and what is written of it."""

import json
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
import pytest
from evaluate_jobs import Run, run_evaluate
from PIL import Image

import pez
from jobs.comparison import chosen_methods, compare, settings_of
from jobs.evaluate import drawn
from pez.methods.names import Method
from pipeline.terminal import Activity, open_console

QUICK = ["--demo", "--images", 4, "--steps", 20, "--swaps", 2, "--tokens", 4, "--device", "cpu"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return run_evaluate(monkeypatch, capsys)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("figures")


def values(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(), parse_constant=pytest.fail)
    return found


def test_all_methods_and_lengths_at_equal_cost(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, demo_clip: pez.Clip, images: list[Image.Image]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    files = {name: folder / f"all.{name}" for name in ("json", "markdown", "parquet", "picture")}
    words = [word for name, file in files.items() for word in (f"--{name}", file)]
    status, output, errors = run(*QUICK, "--methods", "all", "--lengths", 6, 2, *words)
    assert (status, errors) == (0, "")
    found = values(files["json"])
    methods = found["methods"]
    assert list(methods) == list(get_args(Method))
    default = methods["default"]
    for name, each in methods.items():
        assert {"similarity", "judge_similarity", "flop", "seconds", "read_back"} <= each.keys()
        assert f"{each['similarity']:.3f} ± {each['similarity_interval']:.3f}" in output
        if name != "default":
            assert each["similarity_difference"] == pytest.approx(each["similarity"] - default["similarity"])
        if name not in ("default", "bank", "gaslite"):  # one round of gaslite is already more than this budget
            assert 0.8 * default["flop"] < each["flop"] <= default["flop"]
    assert methods["soft"]["soft_similarity"] > default["similarity"]
    assert [each["tokens"] for each in found["lengths"]] == [2, 6]
    assert found["lengths"][1]["similarity"] > found["lengths"][0]["similarity"]
    assert found["peak"]["similarity"] == 6
    rows = pq.read_table(files["parquet"]).to_pylist()
    assert len(rows) == 4 * (len(methods) + 2)
    row = next(row for row in rows if (row["method"], row["key"]) == ("gcg", "00002"))
    feature = demo_clip.image_features(images[2:3])
    assert row["similarity"] == pytest.approx(
        float((demo_clip.text_features([row["prompt"]]) * feature).sum()), abs=1e-5
    )
    lines = files["markdown"].read_text().splitlines()
    assert sum(line.startswith("| PEZ") for line in lines) == 2
    assert Image.open(files["picture"]).format == "PNG"


def test_several_judges_score_the_same_prompts(run: Run, tmp_path: Path) -> None:
    words = ["--methods", "pez", "--score-model", "demo-judge", "demo", "--json", tmp_path / "a.json"]
    assert run(*QUICK, *words)[0] == 0
    [found] = values(tmp_path / "a.json")["methods"].values()
    assert values(tmp_path / "a.json")["judges"] == ["demo-judge", "demo"]
    assert found["judges"]["demo"]["judge_similarity"] == pytest.approx(found["similarity"])
    assert found["judge_similarity"] != pytest.approx(found["similarity"], abs=1e-3)


def test_the_kinds_of_prompts_are_scored_by_every_judge_too(run: Run, tmp_path: Path) -> None:
    words = ["--score-model", "demo-judge", "demo", "--verify-steps", 1, "--images", 2, "--json", tmp_path / "a.json"]
    assert run(*QUICK, *words)[0] == 0
    for outcome in values(tmp_path / "a.json")["outcomes"]:
        assert outcome["others"]["demo"]["mean"] == pytest.approx(outcome["guide"]["mean"])


def test_pictures_are_generated_with_a_generator_only(run: Run, tmp_path: Path) -> None:
    words = ["--methods", "random", "--verify", "demo", "--verify-steps", 1, "--images", 2]
    assert run(*QUICK, *words, "--json", tmp_path / "a.json")[0] == 0
    assert -1 < values(tmp_path / "a.json")["methods"]["random"]["regenerated_similarity"] < 1


def test_the_default_prompts_of_a_comparison_are_those_of_learning_alone(demo_clip: pez.Clip) -> None:
    originals, settings = drawn(3), pez.PezSettings(tokens=4, steps=10, swaps=2)
    chosen = [settings_of("default", settings, ())]
    with Activity(open_console(), "comparing") as activity:
        [scores] = compare(demo_clip, [], originals, chosen, settings, 16, activity)
    assert scores.prompts == pez.learn_prompts(demo_clip, originals.images, settings, originals.keys)


def test_a_rate_of_the_default_is_not_that_of_the_others() -> None:
    given = pez.PezSettings(learning_rate=0.2, restarts=2)
    assert settings_of("default", given, ()) == given
    assert settings_of("autoprompt", given, ()).rate == pez.PezSettings(method="autoprompt").rate
    assert (settings_of("pez", given, ()).searches, settings_of("gcg", given, ()).searches) == (2, 1)


def test_perplexity_is_compared_where_there_is_a_fluency_text(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # where the last columns follow below the first
    words = [*QUICK, "--fluency", 0.1, "--methods", "default", "pez", "--json", tmp_path / "a.json"]
    status, output, errors = run(*words)
    assert (status, errors) == (0, "")
    assert "perplexity" in output
    assert "GFLOP" in output
    assert max(map(len, output.splitlines())) <= 80
    methods = values(tmp_path / "a.json")["methods"]
    assert 1 < methods["default"]["perplexity"] < methods["pez"]["perplexity"]


def test_all_leaves_out_the_bank_without_phrases() -> None:
    found, note = chosen_methods(["all"], bank=False)
    assert "bank" not in found
    assert note == "note: no --bank @FILE is given; the method bank is left out"
    assert chosen_methods(["gcg", "default"], bank=False) == (["gcg", "default"], None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--demo", "--methods", "beam"], "--methods contains 'beam'; expected all, or some of default, pez"),
        (["--demo", "--methods", "all", "--method", "pez"], "--methods and --method are both given"),
        (["--demo", "--lengths", 0], "--lengths contains 0"),
        (["--demo", "--lengths", 4, 31], "its context of 32 has room for 1 to 30"),
        (["--demo", "--markdown", "{tmp}/a"], "--markdown has no effect without --methods or --lengths"),
        (["--demo", "--methods", "pez", "--json", "{tmp}/a", "--parquet", "{tmp}/a"], "expected two files"),
        (["--input", "x", "--methods", "bank", "--model", "demo"], "expected --bank @FILE"),
        (
            ["--demo", "--methods", "pez", "--score-model", "ViT-B-32"],
            "no weights are named for the score model ViT-B-32",
        ),
        (
            ["--demo", "--score-model", "demo", "--score-pretrained", "openai"],
            "--score-pretrained openai has no effect",
        ),
        (["--demo", "--method", "beam"], "invalid choice: 'beam'"),
        (
            ["--demo", "--method", "gcg", "--swaps", 3],
            "--swaps has no effect with --method gcg, which does swaps alone",
        ),
        (["--demo", "--method", "bank"], "--method is bank, but bank has no phrases"),
    ],
)
def test_what_cannot_be_compared_is_one_line_before_any_work(
    run: Run, tmp_path: Path, words: list[object], message: str
) -> None:
    status, output, errors = run(*(str(word).format(tmp=tmp_path) for word in words))
    assert status == 2
    [line] = errors.splitlines()
    assert message.format(tmp=tmp_path) in line
    assert "learning" not in output
