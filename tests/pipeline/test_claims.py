"""Who may write to an output folder, and what is never written over."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pez.errors import UserError
from pipeline.errors import OutputError
from pipeline.processes import this_process
from pipeline.rows import Row
from pipeline.sources.base import Unit
from pipeline.table import PromptTable


def table(folder: Path, steps: int = 1) -> PromptTable:
    return PromptTable(str(folder), {"version": 2, "steps": steps})


def publish(table: PromptTable, stem: str = "a", url: str | None = None) -> Unit:
    shard = Unit(url or f"/in/{stem}.tar", stem)
    table.record([shard])
    table.publish(shard, [Row("key", shard.url, "ok", similarity=0.5)], 1.0)
    return shard


def test_a_start_that_failed_does_not_keep_the_output(tmp_path: Path) -> None:
    table(tmp_path, steps=1).claim()
    table(tmp_path, steps=1).record([Unit("/x/a.tar", "a")])
    again = table(tmp_path, steps=2)
    again.claim()
    assert json.loads((tmp_path / "_run.json").read_text())["settings"]["steps"] == 2
    assert again.divide([Unit("/y/a.tar", "a")])[1] == [Unit("/y/a.tar", "a")]


def test_rows_keep_the_output_for_their_settings(tmp_path: Path) -> None:
    ours = table(tmp_path, steps=1)
    ours.claim()
    publish(ours)
    with pytest.raises(
        UserError, match="holds prompts of other settings: steps was 1 and is 2; choose another --output"
    ):
        table(tmp_path, steps=2).claim()
    (tmp_path / "_reports" / "a.json").unlink()  # as after a crash between the Parquet and its report
    with pytest.raises(UserError, match="holds prompts of other settings"):
        table(tmp_path, steps=2).claim()


@pytest.fixture
def another_process() -> Iterator[dict[str, object]]:
    """What `_this_process` says in a process that is alive."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        alive = {**this_process(), "pid": process.pid}
        with open(f"/proc/{process.pid}/stat") as file:
            alive["started"] = file.read().rpartition(")")[2].split()[19]
        yield alive
        process.kill()


def test_a_job_that_has_no_row_yet_keeps_its_output_while_it_is_alive(
    tmp_path: Path, another_process: dict[str, object]
) -> None:
    table(tmp_path, steps=1).claim()
    run = json.loads((tmp_path / "_run.json").read_text())
    (tmp_path / "_run.json").write_text(json.dumps({**run, "claimed_by": another_process}))
    with pytest.raises(UserError, match="steps was 1 and is 2"):
        table(tmp_path, steps=2).claim()
    (tmp_path / "_run.json").write_text(json.dumps({**run, "claimed_by": {**another_process, "started": "1"}}))
    table(tmp_path, steps=2).claim()


def test_a_job_whose_output_another_took_over_writes_nothing_there(tmp_path: Path) -> None:
    slow = table(tmp_path, steps=1)
    slow.claim()
    table(tmp_path, steps=2).claim()
    with pytest.raises(UserError, match="other settings"):
        publish(slow)
    assert not list(tmp_path.glob("*.parquet"))


def test_an_output_of_another_version_is_refused_in_one_line(tmp_path: Path) -> None:
    old = PromptTable(str(tmp_path), {"steps": 1})
    old.claim()
    publish(old)
    with pytest.raises(UserError, match="another version") as error:
        table(tmp_path, steps=1).claim()
    assert "\n" not in str(error.value)


def test_a_parquet_of_another_program_is_left_alone(tmp_path: Path) -> None:
    theirs = pa.table({"url": ["https://example.com/1.jpg"]})
    pq.write_table(theirs, tmp_path / "00000.parquet")
    with pytest.raises(UserError, match=r"00000.parquet is there already and was not written by a job of this project"):
        table(tmp_path).divide([Unit("/in/00000.tar", "00000")])
    assert pq.read_table(tmp_path / "00000.parquet") == theirs
    assert not (tmp_path / "_run.json").exists()
    assert table(tmp_path).divide([Unit("/in/00001.tar", "00001")])[1]


def test_a_folder_that_has_the_name_of_a_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "00000.parquet").mkdir()  # as Spark writes tables
    with pytest.raises(UserError, match=r"cannot read .*/00000.parquet: Is a directory"):
        table(tmp_path).divide([Unit("/in/00000.tar", "00000")])


@pytest.mark.parametrize(("name", "content"), [("_run.json", '{"mine": 1}'), ("_SUCCESS", "")])
def test_bookkeeping_of_another_program_is_left_alone(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"/{name} is there already and was not written by a job of this project"):
        table(tmp_path).claim()
    assert (tmp_path / name).read_text() == content


def test_a_dataset_card_that_someone_wrote_is_kept(tmp_path: Path) -> None:
    (tmp_path / ".huggingface.yaml").write_text("mine")
    table(tmp_path).claim()
    assert (tmp_path / ".huggingface.yaml").read_text() == "mine"


def test_rows_without_their_settings_are_not_mixed_with_others(tmp_path: Path) -> None:
    ours = table(tmp_path, steps=1)
    ours.claim()
    shard = publish(ours)
    ours.succeed([shard])
    (tmp_path / "_run.json").unlink()
    with pytest.raises(UserError, match="holds prompts of other settings, and _run.json, .*, is missing"):
        table(tmp_path, steps=2).claim()
    assert (tmp_path / "_SUCCESS").exists()
    ours.claim()  # the same settings heal it
    assert ours.divide([shard]) == ([shard], [])


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b'{"shard": "/in/a.tar"}'])
def test_a_report_that_cannot_be_read_is_a_shard_to_do_again(tmp_path: Path, broken: bytes) -> None:
    ours = table(tmp_path)
    ours.claim()
    shard = publish(ours)
    (tmp_path / "_reports" / "a.json").write_bytes(broken)
    assert ours.finished(shard) is None
    if broken.startswith(b'{"'):
        return  # whole JSON of another kind: the actor sees it
    assert ours.divide([shard]) == ([], [shard])
    publish(ours)
    assert ours.divide([shard]) == ([shard], [])


@pytest.mark.parametrize("broken", [b"", b"PAR1", b"PAR1 truncated"])
def test_a_parquet_that_is_not_whole_is_a_shard_to_do_again(tmp_path: Path, broken: bytes) -> None:
    ours = table(tmp_path)
    ours.claim()
    shard = publish(ours)
    (tmp_path / "a.parquet").write_bytes(broken)
    assert ours.finished(shard) is None
    assert ours.divide([shard]) == ([], [shard])


def test_a_report_of_a_later_version_is_read(tmp_path: Path) -> None:
    ours = table(tmp_path)
    ours.claim()
    shard = publish(ours)
    path = tmp_path / "_reports" / "a.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "warnings": ["of a later version"]}))
    report = ours.finished(shard)
    assert report is not None
    assert report.ok == 1
    assert ours.shards() == [shard]


@pytest.mark.parametrize("broken", [b"", b"not json", b"[1]"])
def test_damaged_settings_are_named_where_there_are_rows_and_else_made_anew(tmp_path: Path, broken: bytes) -> None:
    ours = table(tmp_path)
    ours.claim()
    (tmp_path / "_run.json").write_bytes(broken)
    ours.claim()
    publish(ours)
    (tmp_path / "_run.json").write_bytes(broken)
    with pytest.raises(UserError, match="_run.json is damaged"):
        ours.claim()


def test_success_is_said_only_of_tables_that_are_there(tmp_path: Path) -> None:
    ours = table(tmp_path)
    ours.claim()
    shard = publish(ours)
    with pytest.raises(OutputError, match=r"1 of 2 tables are not in .*, including b.parquet"):
        ours.succeed([shard, Unit("/in/b.tar", "b")])
    assert not (tmp_path / "_SUCCESS").exists()
    ours.succeed([shard])
    assert (tmp_path / "_SUCCESS").exists()


def test_a_relative_output_is_the_folder_it_names_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    relative, home = PromptTable("out", {}), PromptTable("~/out", {})
    monkeypatch.chdir("/")
    relative.claim()
    assert relative.url == home.url == str(tmp_path / "out")
    assert (tmp_path / "out" / "_run.json").exists()
    assert not os.path.exists("/~")


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_output_is_refused(empty: str) -> None:
    with pytest.raises(UserError, match="the output is an empty name"):
        PromptTable(empty, {})
