"""The law of the rows through the whole journey: a table has one row a key, and says of each what became of it."""

import io
import json
import math
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image
from random_tars import FORMATS, JPEG, MEMBERS, Member, expected_keys, has_image, packed
from rich.console import Console
from samples_on_disk import MakeTar, encoded
from weak_server import WeakServer

import pez
from jobs import caption, command
from pipeline.progress import JobProgress, prompt_table
from pipeline.rows import ShardReport
from pipeline.run.serial import run_serially
from pipeline.run.tasks import tasks_of
from pipeline.settings import CaptionSettings
from pipeline.sources.base import Unit, UnitError
from pipeline.sources.streams import ByteStream
from pipeline.stages.learn import Learner, describe, learn_unit
from pipeline.stages.learn_stage import LearnWorker
from pipeline.table import PromptTable

SETTINGS = CaptionSettings(model="demo", lanes=16)
METHOD = pez.PezSettings(tokens=3, steps=2, swaps=1, candidates=4)
DESCRIBED = describe(SETTINGS, METHOD, "cpu")


@pytest.fixture(scope="module")
def learner() -> Learner:
    return Learner(SETTINGS, METHOD)


def learned(tar: str, learner: Learner, out: Path) -> tuple[ShardReport, list[dict]]:
    table = PromptTable(str(out), DESCRIBED)
    report = learn_unit(Unit(tar, "a"), learner, table)
    assert json.loads((out / "_reports" / "a.json").read_text())["rows"] == report.rows
    return report, pq.read_table(out / "a.parquet").to_pylist()


@settings(deadline=None, max_examples=6, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(members=MEMBERS, form=FORMATS)
def test_every_key_of_any_tar_is_one_row(learner: Learner, members: list[Member], form: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder, "a.tar")
        tar.write_bytes(packed(members, form))
        keys = expected_keys(members)
        if not keys:
            with pytest.raises(UnitError, match="no image in "):
                learned(str(tar), learner, Path(folder, "out"))
            assert not Path(folder, "out").exists()
            return
        report, rows = learned(str(tar), learner, Path(folder, "out"))
    assert [row["key"] for row in rows] == keys
    for row in rows:
        assert row["status"] in (("ok", "bad_image") if has_image(members, row["key"]) else ("no_image",))
        assert (row["status"] == "ok") == (row["error_message"] is None) == (row["prompt"] is not None)
        assert (row["status"] == "ok") == (row["similarity"] is not None and -1 <= row["similarity"] <= 1)
    statuses = [row["status"] for row in rows]
    assert (report.rows, report.ok) == (len(rows), statuses.count("ok"))
    assert report.failed == {s: statuses.count(s) for s in set(statuses) - {"ok"}}
    assert len(report.failures) == report.rows - report.ok


def shuffled(members: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """As `tar cf 0.tar folder` writes them: in no order."""
    return [members[i] for i in np.random.default_rng(0).permutation(len(members))]


@pytest.fixture
def scenes_with_all_kinds(images: list) -> list[tuple[str, bytes]]:
    """Nine keys with captions, one of them broken and one without a picture, and members beside them."""
    members: list[tuple[str, bytes]] = []
    for i in range(8):
        members += [(f"{i}.png", encoded(images[i])), (f"{i}.txt", f"scene {i}".encode()), (f"{i}.meta.json", b"{}")]
    members[6] = ("2.png", b"\x89PNG broken")
    return [*members, ("8.txt", b"no picture")]


def by_key(rows: list[dict]) -> dict[str, dict]:
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row for row in rows}


def test_captions_in_any_order_are_those_of_neighbours(
    make_tar: MakeTar, learner: Learner, scenes_with_all_kinds: list, tmp_path: Path
) -> None:
    tar = make_tar("a.tar", scenes_with_all_kinds)
    report, neighbours = learned(tar, learner, tmp_path / "neighbours")
    assert [row["caption"] for row in neighbours] == [*(f"scene {i}" for i in range(8)), "no picture"]
    assert [row["status"] for row in neighbours].count("ok") == 7
    captions_last = sorted(scenes_with_all_kinds, key=lambda member: member[0].endswith(".txt"))
    for n, order in enumerate((captions_last, captions_last[::-1], shuffled(scenes_with_all_kinds))):
        make_tar("a.tar", order)
        again, rows = learned(tar, learner, tmp_path / f"out-{n}")
        assert by_key(rows) == by_key(neighbours), "bit for bit, and each key once"
        firsts = dict.fromkeys(name.split(".")[0] for name, _ in order if not name.endswith("json"))
        assert [row["key"] for row in rows] == list(firsts)
        assert (again.rows, again.ok, again.left_out) == (report.rows, report.ok, {})


def test_late_captions_are_those_of_the_whole_shard_also_in_parts_again_and_among_others(
    make_tar: MakeTar, learner: Learner, scenes_with_all_kinds: list, tmp_path: Path
) -> None:
    order = shuffled(scenes_with_all_kinds)
    shard = Unit(make_tar("a.tar", order), "a")
    whole = PromptTable(str(tmp_path / "whole"), DESCRIBED)
    report = learn_unit(shard, learner, whole)
    expected = (tmp_path / "whole" / "a.parquet").read_bytes()
    for parts in (2, 5):
        table = PromptTable(str(tmp_path / f"parts-{parts}"), DESCRIBED)
        assert run_serially(tasks_of([shard], parts), LearnWorker(learner, table), lambda _: None) == {}
        assert (tmp_path / f"parts-{parts}" / "a.parquet").read_bytes() == expected
    mended = [(name, encoded(Image.new("RGB", (64, 64), "red")) if name == "2.png" else data) for name, data in order]
    make_tar("a.tar", mended)
    again = learn_unit(shard, learner, whole, retry_failed=True)
    assert (again.ok, again.left_out) == (report.ok + 1, report.left_out)
    learn_unit(shard, learner, PromptTable(str(tmp_path / "mended"), DESCRIBED))
    assert (tmp_path / "whole" / "a.parquet").read_bytes() == (tmp_path / "mended" / "a.parquet").read_bytes()
    sharing = Learner(SETTINGS, METHOD)
    learn_unit(shard, sharing, PromptTable(str(tmp_path / "sharing"), DESCRIBED))
    assert (tmp_path / "sharing" / "a.parquet").read_bytes() == (tmp_path / "mended" / "a.parquet").read_bytes()


def test_a_file_that_is_no_tar_fails_at_once_and_one_in_passing_is_tried_again(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.run.work.retry_delay", lambda failures: 0.0)
    (tmp_path / "photo.jpg").write_bytes(JPEG)
    (tmp_path / "page.tar").write_bytes(b"<html>busy</html>")
    shards = [Unit(str(tmp_path / name), name) for name in ("photo.jpg", "page.tar")]
    notes: list[str] = []
    table = PromptTable(str(tmp_path / "out"), DESCRIBED)
    failed = run_serially(
        tasks_of(shards), LearnWorker(learner, table), lambda _: None, attempts=3, on_note=notes.append
    )
    assert "tar cf photos.tar photos" in failed[shards[0].url]
    assert [note.split(":")[0] for note in notes] == ["page.tar", "page.tar"]


def run_job(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    small = ["--local", "--model", "demo", "--tokens", "3", "--swaps", "0", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["jobs.caption", *small, *words])
    with pytest.raises(SystemExit) as ended:
        command.run(caption.CaptionJob, caption.__doc__, caption.caption)
    return ended.value.code


def test_a_job_in_which_no_image_was_captioned_ends_with_1_and_says_what_was_there(
    make_tar: MakeTar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = make_tar("a.tar", [("1.jpg", JPEG), ("1.json", b"{}"), ("2.jpg", JPEG), ("3.txt", b"text")])
    for _ in range(2):  # also where all is done already
        assert run_job(monkeypatch, "--input", tar, "--output", f"{tmp_path}/out", "--image-key", "png") == 1
        shown = " ".join("".join(capsys.readouterr()).split())
        words = "not one image was captioned; 3 keys have no picture: extensions jpg, json, captions alone; check --image-key"
        assert words in shown
        assert not (tmp_path / "out" / "_SUCCESS").exists()
    tar = make_tar("b.tar", [("1.jpg", b"broken"), ("2.jpg", b"broken")])
    assert run_job(monkeypatch, "--input", tar, "--output", f"{tmp_path}/other") == 1
    assert "not one image was captioned: 2 bad_image; the first: cannot decode" in "".join(capsys.readouterr())


def test_verification_reads_a_shard_as_it_was_captioned(
    make_tar: MakeTar, images: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [
        ("x.left.png", encoded(images[0])),
        ("x.right.png", encoded(images[1])),
        ("y.left.png", encoded(images[2])),
    ]
    tar = Path(make_tar("a.tar", members))
    with tarfile.open(tar) as file:
        file.getmembers()
        end = file.offset
    tar.write_bytes(tar.read_bytes()[:end])
    words = ["--input", str(tar), "--output", f"{tmp_path}/out", "--image-key", ".left.png", "--allow-unfinished-tars"]
    words += ["--verify", "demo", "--verify-steps", "2", "--key-split", "last"]
    assert run_job(monkeypatch, *words) == 0
    rows = pq.read_table(tmp_path / "out" / "a.parquet").to_pylist()
    assert [(row["key"], row["status"]) for row in rows] == [("x", "ok"), ("y", "ok")]
    assert all(row["regenerated_similarity"] is not None for row in rows)


def test_text_of_strangers_is_stored_as_it_is(make_tar: MakeTar, learner: Learner, tmp_path: Path) -> None:
    key, text = "<script>alert(1)</script>[red]x[/red]", "<b>bold</b> [/] \x1b[31mred\x07 \0 \u202ekcab"
    tar = make_tar("a.tar", [(f"{key}.jpg", JPEG), (f"{key}.txt", text.encode()), ("2.jpg", JPEG), ("2.txt", b"\xff")])
    _, rows = learned(tar, learner, tmp_path / "out")
    assert [(row["key"], row["caption"]) for row in rows] == [(key, text), ("2", "\N{REPLACEMENT CHARACTER}")]


def test_text_of_strangers_does_not_steer_a_terminal(make_tar: MakeTar, learner: Learner, tmp_path: Path) -> None:
    key, text = "[red]x[/red]\x1b[2J", "[/] \x1b[31mred\x07\r\u202ekcab\nnext [bold]"
    tar = make_tar("a.tar", [(f"{key}.jpg", JPEG), (f"{key}.txt", text.encode())])
    learned(tar, learner, tmp_path / "out")
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=200)
    console.print(prompt_table(pq.read_table(tmp_path / "out" / "a.parquet")))
    JobProgress(1, 0, console).note(f"{key}: {text}")
    shown = screen.getvalue()
    assert shown.count(r"[red]x[/red]\x1b[2J") == 2
    assert shown.count(r"[/] \x1b[31mred\x07\r\u202ekcab\nnext [bold]") == 2
    assert not {c for c in shown.replace("\n", "") if not c.isprintable()}


def test_names_of_strangers_do_not_steer_a_terminal(
    make_tar: MakeTar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = make_tar("in/[red]good\x1b[31m.tar", [("[/]\x1b]0;title\x07.jpg", JPEG)])
    Path(tmp_path, "in", "[b]bad\x1b[2J\r.tar").write_bytes(b"not a tar")
    words = ["--output", f"{tmp_path}/[/out]", "--local", "--model", "demo", "--tokens", "3", "--swaps", "0"]
    statuses = []
    for more in (["--input", good], ["--input", f"{tmp_path}/in"], ["--input", good, "--steps", "3"]):
        monkeypatch.setattr(sys, "argv", ["jobs.caption", "--steps", "2", *words, *more])
        with pytest.raises(SystemExit) as ended:
            command.run(caption.CaptionJob, caption.__doc__, caption.caption)
        statuses.append(ended.value.code)
    shown = "".join(capsys.readouterr())
    assert statuses == [0, 1, 2]
    assert "1 Parquet file in" in shown
    assert r"[b]bad\x1b[2J\r.tar is not a tar" in shown
    assert r"[/]\x1b]0;title\x07" in shown
    assert "[/out] holds prompts of other settings" in shown
    assert not {c for c in shown.replace("\n", "") if not c.isprintable()}


def test_a_caption_of_a_megabyte_of_one_word_is_soon_scored(
    make_tar: MakeTar, learner: Learner, tmp_path: Path
) -> None:
    letters = np.random.default_rng(0).integers(ord("a"), ord("z") + 1, 2**20, np.uint8).tobytes()
    tar = make_tar("a.tar", [("1.jpg", JPEG), ("1.txt", letters)])
    start = time.monotonic()
    _, [row] = learned(tar, learner, tmp_path / "out")
    assert time.monotonic() - start < 300  # CLIP's tokenizer needs most of an hour for all of it
    assert row["caption"] == letters.decode()
    assert -1 <= row["caption_similarity"] <= 1


def test_pictures_of_any_shape_have_a_prompt_or_a_reason(make_tar: MakeTar, learner: Learner, tmp_path: Path) -> None:
    sizes = {"dot": (1, 1), "line": (200, 1), "sliver": (1, 30_000), "wide": (3000, 40), "plain": (64, 64)}
    tar = make_tar("a.tar", [(f"{n}.png", encoded(Image.new("RGB", size, "red"))) for n, size in sizes.items()])
    _, rows = learned(tar, learner, tmp_path / "out")
    assert {row["key"]: row["status"] for row in rows} == {n: "ok" for n in sizes} | {"sliver": "bad_image"}
    assert all(math.isfinite(row["similarity"]) for row in rows if row["status"] == "ok")


def test_a_similarity_that_is_no_number_is_a_row_with_a_reason(
    make_tar: MakeTar, images: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = make_tar("a.tar", [(f"{i}.png", encoded(images[i])) for i in range(4)])
    learner = Learner(SETTINGS, METHOD)
    _, undisturbed = learned(tar, learner, tmp_path / "undisturbed")
    preprocess, damaged = learner.clip.preprocess, encoded(images[2])
    # As of a model that overflows on one picture.
    monkeypatch.setattr(
        learner.clip, "preprocess", lambda image: preprocess(image) * (math.nan if encoded(image) == damaged else 1.0)
    )
    report, rows = learned(tar, learner, tmp_path / "out")
    assert [row["status"] for row in rows] == ["ok", "ok", "not_finite", "ok"]
    assert "similarity is NaN" in rows[2]["error_message"]
    assert (rows[2]["similarity"], rows[2]["prompt"], rows[2]["width"]) == (None, None, 64)
    assert [rows[i] for i in (0, 1, 3)] == [undisturbed[i] for i in (0, 1, 3)]
    assert (report.ok, report.failed) == (3, {"not_finite": 1})
    assert math.isfinite(report.mean_similarity or math.nan)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_shard_over_a_line_that_breaks_has_the_rows_of_the_file(
    scene_tars: list[str], learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    monkeypatch.setattr(ByteStream, "waits", (0.01, 0.01))
    data = Path(scene_tars[0]).read_bytes()
    _, undisturbed = learned(scene_tars[0], learner, tmp_path / "undisturbed")
    with WeakServer({"a.tar": data}, ranges, breaks=2, break_at=len(data) // 2).running() as server:
        url = f"{server.url}/a.tar"
        _, rows = learned(url, learner, tmp_path / "out")
        assert server.breaks == 0
    assert rows == [{**row, "shard": url} for row in undisturbed]
    assert len(rows) == 4


def test_the_report_counts_what_is_in_no_row(make_tar: MakeTar, learner: Learner, tmp_path: Path) -> None:
    tar = make_tar("a.tar", [("1.jpg", JPEG), ("1.png", JPEG), (".hidden.jpg", JPEG)])
    report, rows = learned(tar, learner, tmp_path / "out")
    assert [row["key"] for row in rows] == ["1"]
    assert report.left_out == {"another image of its key": 1, "hidden, without an extension, or not a file": 1}
    assert PromptTable(str(tmp_path / "out"), DESCRIBED).finished(Unit(tar, "a")) == report
