"""Several prompts for each image: kept, shown, and chosen by what a generator makes of them."""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from caption_jobs import Run, rows_of, run_caption
from samples_on_disk import MakeTar, encoded

import pez
from jobs import command, invert, verify

KEEP = ("--candidates-kept", 3)
VERIFY = ("--verify", "demo", "--verify-steps", 1)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return run_caption(monkeypatch, capsys)


@pytest.fixture
def tar(make_tar: MakeTar, images: list) -> str:
    return make_tar("in/a.tar", [*((f"{i}.png", encoded(images[i])) for i in range(3)), ("bad.png", b"junk")])


def verified_again(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["verify", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        command.run(verify.VerifyJob, None, verify.verify)
    return int(ended.value.code or 0)


def test_the_prompt_nearest_under_the_guide_is_chosen(
    run: Run, tar: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    status, _, errors = run("--input", tar, "--output", out, *KEEP)
    assert (status, errors) == (0, "")
    learned = rows_of(out)
    assert learned["bad"]["alternatives"] is None
    of_prompt = ("prompt", "similarity", "token_ids", "token_similarity")
    for key in "012":
        row = learned[key]
        assert {name: row[name] for name in of_prompt} == {name: row["alternatives"][0][name] for name in of_prompt}
        assert len({each["prompt"] for each in row["alternatives"]}) == 3
    words = ("--input", tar, "--output", out, *KEEP, *VERIFY, "--choose-by", "regeneration")
    assert run(*words)[0] == 0
    chosen = rows_of(out)
    for key in "012":
        row, several = chosen[key], chosen[key]["alternatives"]
        best = max(several, key=lambda each: each["guide_regenerated_similarity"])
        assert {name: row[name] for name in of_prompt} == {name: best[name] for name in of_prompt}
        assert row["regenerated_similarity"] == pytest.approx(best["regenerated_similarity"])
        assert [each["prompt"] for each in several] == [each["prompt"] for each in learned[key]["alternatives"]]
    assert any(chosen[key]["prompt"] != learned[key]["prompt"] for key in "012")  # three images of one step each
    before = (out / "a.parquet").read_bytes()
    assert "all" in run(*words)[1] or "the one shard is done and verified" in run(*words)[1]
    # Verified again, the choice is made among the same alternatives.
    (out / "_verified/a.json").unlink()
    assert run(*words)[0] == 0
    assert (out / "a.parquet").read_bytes() == before
    # Without the choice, the prompt is the learned one.
    (out / "_verified/a.json").unlink()
    (out / "_verify.json").unlink()
    assert verified_again(monkeypatch, out, *VERIFY, "--local") == 0
    restored = rows_of(out)
    assert [restored[key]["prompt"] for key in "012"] == [learned[key]["prompt"] for key in "012"]
    assert restored["0"]["alternatives"] == learned["0"]["alternatives"]


def mean_similarity(out: Path) -> float:
    """Over the published rows."""
    found = [row["similarity"] for row in rows_of(out).values() if row["status"] == "ok"]
    return sum(found) / len(found)


def reported(out: Path) -> float:
    return float(json.loads((out / "_reports/a.json").read_text())["mean_similarity"])


def test_reports_and_the_summary_describe_the_chosen_prompts(
    run: Run, tar: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    status, shown, _ = run("--input", tar, "--output", out, *KEEP, *VERIFY, "--choose-by", "regeneration")
    assert status == 0
    chosen = mean_similarity(out)
    learned = sum(row["alternatives"][0]["similarity"] for row in rows_of(out).values() if row["status"] == "ok") / 3
    assert f"{chosen:.3f}" != f"{learned:.3f}"
    assert reported(out) == pytest.approx(chosen)
    assert f"1/1 shards  3 images  mean similarity {chosen:.3f}" in shown
    # Without the choice, the rows have the learned prompts again, and the report describes them.
    (out / "_verified/a.json").unlink()
    (out / "_verify.json").unlink()
    assert verified_again(monkeypatch, out, *VERIFY, "--local") == 0
    assert reported(out) == pytest.approx(learned)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_on_ray_several_generators_choose_as_in_one_process(run: Run, tar: str, tmp_path: Path) -> None:
    from small_generators import linked

    other = linked(tmp_path / "other", scheduler=["diffusers", "DDIMScheduler"])
    words = ("--input", tar, *KEEP, "--verify", "demo", other, "--verify-steps", 1, "--choose-by", "regeneration")
    for name in ("local", "ray"):
        status, shown, errors = run(*words, "--output", tmp_path / name, on_ray=name == "ray")
        assert status == 0, errors
        assert f"mean similarity {mean_similarity(tmp_path / name):.3f}" in shown
        assert reported(tmp_path / name) == pytest.approx(mean_similarity(tmp_path / name))
    local, ray = rows_of(tmp_path / "local"), rows_of(tmp_path / "ray")
    assert ray["bad"] == local["bad"]
    for key in "012":
        row, several = ray[key], ray[key]["alternatives"]
        assert [each["prompt"] for each in several] == [each["prompt"] for each in local[key]["alternatives"]]
        for each, same in zip(several, local[key]["alternatives"], strict=True):  # threads differ, and so do last bits
            for name in ("regenerated_similarity", "guide_regenerated_similarity"):
                assert each[name] == pytest.approx(same[name], abs=2e-3)
        best = max(several, key=lambda each: each["guide_regenerated_similarity"])
        assert (row["prompt"], row["similarity"]) == (best["prompt"], best["similarity"])
        assert row["regenerated_similarity"] == pytest.approx(best["regenerated_similarity"])
        assert row["regenerated_similarity"] == pytest.approx(sum(row["generator_similarities"]) / 2)
        assert len(row["regenerated_similarities"]) == 2
    assert any(ray[key]["prompt"] != ray[key]["alternatives"][0]["prompt"] for key in "012")


def test_a_choice_needs_something_to_choose_from(run: Run, tar: str, tmp_path: Path) -> None:
    status, _, errors = run("--input", tar, "--output", tmp_path / "out", *VERIFY, "--choose-by", "regeneration")
    assert status == 2
    assert "choose-by is regeneration, but each row has one prompt; expected" in errors
    status, _, errors = run("--input", tar, "--output", tmp_path / "out", *KEEP, "--choose-by", "regeneration")
    assert status == 2
    assert "--choose-by has no effect without --verify" in errors
    assert not (tmp_path / "out").exists()


def test_several_generators_have_a_similarity_each(
    run: Run, tar: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from small_generators import linked

    other = linked(tmp_path / "other", scheduler=["diffusers", "DDIMScheduler"])
    words = ("--input", tar, "--verify-images", 2, "--verify-steps", 1)
    assert run(*words, "--output", tmp_path / "one", "--verify", "demo")[0] == 0
    assert run(*words, "--output", tmp_path / "two", "--verify", "demo", other)[0] == 0
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert "generator_similarities" not in one["0"]
    assert two["bad"]["generator_similarities"] is None
    for key in "012":
        row = two[key]
        assert len(row["regenerated_similarities"]) == len(row["regeneration"]["seeds"]) == 4
        assert row["regenerated_similarities"][:2] == one[key]["regenerated_similarities"]
        assert row["generator_similarities"][0] == one[key]["regenerated_similarity"]
        means = [sum(row["regenerated_similarities"][i : i + 2]) / 2 for i in (0, 2)]
        assert row["generator_similarities"] == pytest.approx(means)
        assert row["regenerated_similarity"] == pytest.approx(sum(means) / 2)
        assert row["regeneration"]["model"] == f"demo + {other}"
    names = pq.read_schema(tmp_path / "two/a.parquet").names
    assert names[-4:] == ["generator_similarities", *pq.read_schema(tmp_path / "one/a.parquet").names[-3:]]
    status, _, errors = run(*words, "--output", tmp_path / "x", "--verify", "demo", "demo")
    assert (status, errors.strip()) == (
        2,
        "error: --verify names demo twice; expected different generators",
    )


def test_perplexity_is_a_column_and_fluency_needs_texts(run: Run, tar: str, tmp_path: Path) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("a red ring\na blue square\n", encoding="utf-8")
    assert run("--input", tar, "--output", tmp_path / "a", "--fluency-text", captions, *KEEP)[0] == 0
    row = rows_of(tmp_path / "a")["0"]
    assert row["perplexity"] == row["alternatives"][0]["perplexity"] > 1
    assert "2 texts, sha256 " in (tmp_path / "a/_run.json").read_text()
    assert run("--input", tar, "--output", tmp_path / "b", "--fluency", 0.1)[0] == 0  # the demo's own captions
    assert rows_of(tmp_path / "b")["0"]["perplexity"] > 1


def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any]:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["invert", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        command.run(invert.InvertJob, None, invert.invert)
    return int(ended.value.code or 0), capsys.readouterr()


def test_invert_prints_the_alternatives(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    demo_clip: pez.Clip,
    images: list,
    tmp_path: Path,
) -> None:
    images[0].save(tmp_path / "a.png")
    words = [
        tmp_path / "a.png",
        "--model",
        "demo",
        "--tokens",
        3,
        "--steps",
        10,
        "--swaps",
        1,
        *KEEP,
        "--fluency",
        0.01,
    ]
    status, (output, errors) = shown(monkeypatch, capsys, *words)
    assert (status, errors) == (0, "")
    assert "alternatives" in output
    assert "perplexity: " in output
    status, (_, errors) = shown(monkeypatch, capsys, tmp_path / "a.png", "--fluency", 0.1)
    assert status == 2
    assert "--fluency needs texts such as captions; expected --fluency-text FILE" in errors
