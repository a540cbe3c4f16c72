"""The journey of a shard: one row for every key, the same rows every time, nothing half-done on disk."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from samples_on_disk import MakeTar, encoded

import pez
from pez.demo import GUIDE
from pez.errors import UserError
from pipeline.rows import SCHEMA, Row
from pipeline.run.serial import run_serially
from pipeline.run.tasks import tasks_of
from pipeline.settings import CaptionSettings
from pipeline.sources.base import Unit, UnitError
from pipeline.sources.units import name_units
from pipeline.stages.learn import Learner, describe, learn_unit
from pipeline.stages.learn_stage import LearnWorker
from pipeline.table import PromptTable

SETTINGS = CaptionSettings(model="demo", lanes=16)
METHOD = pez.PezSettings(tokens=6, steps=20)
DESCRIBED = describe(SETTINGS, METHOD, "cpu")


@pytest.fixture(scope="module")
def learner() -> Learner:
    return Learner(SETTINGS, METHOD)


@pytest.fixture
def table(tmp_path: Path) -> PromptTable:
    return PromptTable(str(tmp_path / "out"), DESCRIBED)


def rows_of(path: str | Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def test_every_key_has_one_row(make_tar: MakeTar, images: list, learner: Learner, table: PromptTable) -> None:
    png = encoded(images[0])
    members = [(f"{i:02d}.png", png) for i in range(20)]
    members[3:3] = [("broken.jpg", b"\xff\xd8junk"), ("text.txt", b"only text")]
    members.append(("last.json", b"{}"))
    tar = make_tar("in/a.tar", members)
    report = learn_unit(Unit(tar, "a"), learner, table)
    rows = rows_of(f"{table.url}/a.parquet")
    assert [row["key"] for row in rows] == [m.rsplit(".", 1)[0] for m, _ in members]
    assert {row["key"]: row["status"] for row in rows if row["status"] != "ok"} == {
        "broken": "bad_image",
        "text": "no_image",
        "last": "no_image",
    }
    assert (report.rows, report.ok, report.failed) == (23, 20, {"bad_image": 1, "no_image": 2})
    assert all(row["error_message"] for row in rows if row["status"] != "ok")


def test_a_row_tells_all(scene_tars: list[str], learner: Learner, table: PromptTable) -> None:
    learn_unit(Unit(scene_tars[0], "scenes-0"), learner, table)
    written = pq.read_table(f"{table.url}/scenes-0.parquet")
    assert written.schema.names == SCHEMA.names
    row = written.to_pylist()[1]
    assert (row["key"], row["shard"], row["caption"]) == ("001", scene_tars[0], "caption 1")
    assert (row["width"], row["height"], row["steps"], row["seed"], row["model"]) == (64, 64, 20, 0, "demo")
    assert len(row["token_ids"]) == 6
    assert json.loads(written.schema.metadata[b"pez"])["method"]["tokens"] == 6


def test_anyone_recomputes_the_similarity_with_open_clip_alone(
    scene_tars: list[str], learner: Learner, table: PromptTable, images: list
) -> None:
    learn_unit(Unit(scene_tars[0], "s"), learner, table)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{GUIDE}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{GUIDE}")
    model.eval()
    for row, image in zip(rows_of(f"{table.url}/s.parquet"), images[:4], strict=True):
        with torch.no_grad():
            feature = F.normalize(model.encode_image(preprocess(image)[None]), dim=-1)
            for text, column in ((row["prompt"], "similarity"), (row["caption"], "caption_similarity")):
                own = F.normalize(model.encode_text(tokenizer([text])), dim=-1)
                assert float((feature * own).sum()) == pytest.approx(row[column], abs=1e-3)


def test_twice_is_the_same_file(scene_tars: list[str], learner: Learner, tmp_path: Path) -> None:
    shard = Unit(scene_tars[0], "s")
    files = []
    for name in ("one", "two"):
        learn_unit(shard, learner, PromptTable(str(tmp_path / name), DESCRIBED))
        files.append((tmp_path / name / "s.parquet").read_bytes())
    assert files[0] == files[1]


def test_a_picture_has_the_same_prompt_in_any_shard(
    make_tar: MakeTar, images: list, learner: Learner, table: PromptTable
) -> None:
    members = [(f"{i:03d}.png", encoded(images[i])) for i in range(20)]
    learn_unit(Unit(make_tar("in/a.tar", members), "a"), learner, table)
    learn_unit(Unit(make_tar("in/b.tar", members[:2:-5]), "b"), learner, table)
    a, b = ({r["key"]: r["prompt"] for r in rows_of(f"{table.url}/{n}.parquet")} for n in "ab")
    assert len(b) == 4
    assert b.items() <= a.items()


def test_a_finished_shard_is_not_done_again(scene_tars: list[str], learner: Learner, table: PromptTable) -> None:
    shard = Unit(scene_tars[0], "s")
    report = learn_unit(shard, learner, table)
    Path(scene_tars[0]).unlink()
    assert learn_unit(shard, learner, table) == report


def test_parquet_without_a_report_is_done_again(scene_tars: list[str], learner: Learner, table: PromptTable) -> None:
    shard = Unit(scene_tars[0], "s")
    learn_unit(shard, learner, table)
    before = Path(f"{table.url}/s.parquet").read_bytes()
    Path(f"{table.url}/_reports/s.json").unlink()  # as after a crash between the two
    assert table.pending([shard]) == [shard]
    learn_unit(shard, learner, table)
    assert Path(f"{table.url}/s.parquet").read_bytes() == before


def test_a_shard_cut_short_leaves_nothing(scene_tars: list[str], learner: Learner, table: PromptTable) -> None:
    data = Path(scene_tars[0]).read_bytes()
    Path(scene_tars[0]).write_bytes(data[: len(data) // 2])
    with pytest.raises(UnitError, match="truncated|damaged"):
        learn_unit(Unit(scene_tars[0], "s"), learner, table)
    assert not list(Path(table.url).rglob("*"))


def test_an_empty_shard_is_a_failure(make_tar: MakeTar, learner: Learner, table: PromptTable) -> None:
    with pytest.raises(UnitError, match="no image in .*; expected members like 0001.jpg"):
        learn_unit(Unit(make_tar("in/a.tar", []), "a"), learner, table)


def test_one_bad_shard_does_not_stop_the_others(scene_tars: list[str], learner: Learner, table: PromptTable) -> None:
    Path(scene_tars[1]).write_bytes(b"not a tar")
    reports: list = []
    failed = run_serially(tasks_of(name_units(scene_tars)), LearnWorker(learner, table), reports.append)
    assert list(failed) == [scene_tars[1]]
    assert [r.stem for r in reports] == ["scenes-0", "scenes-2"]


@pytest.mark.parametrize(
    "change",
    [lambda: dataclasses.replace(METHOD, steps=21), lambda: dataclasses.replace(METHOD, blocklist=("red",))],
    ids=["steps", "blocklist"],
)
def test_other_settings_are_refused_and_named(table: PromptTable, change: Callable[[], pez.PezSettings]) -> None:
    table.claim()
    table.publish(Unit("a.tar", "a"), [Row("key", "a.tar", "ok")], 1.0)
    other = PromptTable(table.url, describe(SETTINGS, change(), "cpu"))
    with pytest.raises(UserError, match="(steps was 20 and is 21|blocklist was .* and is .*); choose another --output"):
        other.claim()


def test_a_job_that_met_an_unfinished_tar_is_resumed_with_leave_to_take_it(table: PromptTable) -> None:
    table.claim()
    table.publish(Unit("a.tar", "a"), [Row("key", "a.tar", "ok")], 1.0)
    allowing = dataclasses.replace(SETTINGS, allow_unfinished_tars=True)
    assert PromptTable(table.url, describe(allowing, METHOD, "cpu")).claim()


def test_a_stem_of_another_address_is_left_to_it(scene_tars: list[str], learner: Learner, table: PromptTable) -> None:
    learn_unit(Unit(scene_tars[0], "0"), learner, table)
    [shard] = table.pending([Unit(scene_tars[1], "0")])
    assert shard.stem.startswith("scenes-1-")


def test_readers_of_the_folder_see_tables_only(scene_tars: list[str], learner: Learner, table: PromptTable) -> None:
    table.claim()
    for shard in name_units(scene_tars):
        learn_unit(shard, learner, table)
    table.succeed()
    assert pq.read_table(table.url).num_rows == 12  # the whole folder as one dataset


def test_lanes_must_come_in_sixteens() -> None:
    with pytest.raises(ValueError, match="lanes is 20; expected a multiple of 16"):
        CaptionSettings(lanes=20)
