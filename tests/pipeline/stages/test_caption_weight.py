"""`--caption-weight`: an image and its caption are the target together."""

from pathlib import Path
from typing import Any

import pytest
from caption_jobs import Run, rows_of, run_caption
from PIL import Image
from samples_on_disk import MakeTar, encoded

import pez
from pez.demo import scenes


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return run_caption(monkeypatch, capsys)


@pytest.fixture
def members(images: list[Image.Image], held_out: list[scenes.Scene]) -> dict[str, bytes]:
    """Four images of one scene each, and captions of other scenes for three of them."""
    found = {f"{i}.png": encoded(images[i]) for i in range(4)}
    return found | {f"{i}.txt": scenes.caption(held_out[i + 10]).encode() for i in (0, 1, 3)}


def without_shard(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {key: {name: value for name, value in row.items() if name != "shard"} for key, row in rows.items()}


def test_the_similarity_is_that_of_both_and_each_is_reported(
    run: Run,
    make_tar: MakeTar,
    members: dict[str, bytes],
    tmp_path: Path,
    demo_clip: pez.Clip,
    images: list[Image.Image],
) -> None:
    tar = make_tar("in/a.tar", sorted(members.items()))
    words = ["--input", tar, "--steps", 60, "--swaps", 8]
    found = {}
    for weight in (0, 0.5):
        out = tmp_path / f"{weight}"
        status, _, errors = run(*words, "--output", out, "--caption-weight", weight)
        assert status == 0, errors
        found[weight] = rows_of(out)
    assert "target_similarities" not in found[0]["0"]
    nearer = []
    for key, row in found[0.5].items():
        texts = [row["prompt"], found[0][key]["prompt"], row["caption"] or ""]
        own, alone, caption = demo_clip.text_features(texts)
        image = demo_clip.image_features([images[int(key)]])[0]
        parts = [float(own @ image), float(own @ caption)][: 2 if row["caption"] else 1]
        assert row["target_similarities"] == pytest.approx(parts, abs=1e-5)
        assert row["similarity"] == pytest.approx(sum(parts) / len(parts), abs=1e-5)
        if row["caption"]:
            assert row["caption_similarity"] == pytest.approx(float(image @ caption), abs=1e-5)
            nearer.append(parts[1] - float(alone @ caption))
        else:
            assert row["prompt"] == found[0][key]["prompt"]
    assert len(nearer) == 3
    assert sum(nearer) / 3 > 0.05


@pytest.mark.parametrize("parts", [1, 2])
def test_a_caption_that_comes_later_counts_as_well(
    run: Run, make_tar: MakeTar, members: dict[str, bytes], tmp_path: Path, parts: int
) -> None:
    beside = make_tar("in/beside.tar", sorted(members.items()))
    later = make_tar("in/later.tar", sorted(members.items(), key=lambda member: member[0].endswith("txt")))
    rows = {}
    for tar in (beside, later):
        out = tmp_path / Path(tar).stem
        words = ["--input", tar, "--output", out, "--caption-weight", 0.4]
        status, _, errors = run(*words, "--parts", 1 if tar == beside else parts)
        assert status == 0, errors
        rows[tar] = without_shard(rows_of(out))
    assert rows[beside] == rows[later]
    assert {key: len(row["target_similarities"]) for key, row in rows[later].items()} == {
        "0": 2,
        "1": 2,
        "2": 1,
        "3": 2,
    }


def test_a_weight_out_of_range_is_one_line(
    run: Run, make_tar: MakeTar, members: dict[str, bytes], tmp_path: Path
) -> None:
    tar = make_tar("in/a.tar", sorted(members.items()))
    status, _, errors = run("--input", tar, "--output", tmp_path / "out", "--caption-weight", 1)
    assert (status, errors) == (2, "error: --caption-weight is 1.0; expected 0 to below 1\n")
