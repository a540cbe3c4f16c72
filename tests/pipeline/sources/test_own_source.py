"""A source that the project does not have: forty lines, and all the rest comes with it."""

from pathlib import Path
from typing import Any

import number_source
import pyarrow.parquet as pq
import pytest
from number_source import NumberSource
from ray import cloudpickle

import pez
from pipeline.description import describe
from pipeline.rows import ShardReport
from pipeline.run.ray import plan_stage, run_on_ray
from pipeline.run.resources import ActorPlan
from pipeline.run.serial import run_serially
from pipeline.run.tasks import tasks_of
from pipeline.settings import ClusterSettings, LearnSettings
from pipeline.sources.base import Unit
from pipeline.sources.units import name_units
from pipeline.stages.learn import Learner
from pipeline.stages.learn_stage import LearnStage, LearnWorker
from pipeline.table import PromptTable

SETTINGS, METHOD = LearnSettings(model="demo", lanes=16), pez.PezSettings(tokens=3, steps=10, swaps=0)


@pytest.fixture
def units(tmp_path: Path) -> list[Unit]:
    (tmp_path / "odd.txt").write_text("1\n3\nfive\n7\n")
    (tmp_path / "even.txt").write_text("2\n4\n")
    return name_units([str(tmp_path / "odd.txt"), str(tmp_path / "even.txt")])


@pytest.fixture
def source(tmp_path: Path) -> NumberSource:
    (tmp_path / "marks").mkdir()
    return NumberSource(str(tmp_path / "marks"))


def table_of(folder: Path, source: NumberSource) -> PromptTable:
    return PromptTable(str(folder), describe(SETTINGS, METHOD, "cpu", source), columns=source.columns)


def check(table: PromptTable, units: list[Unit], reports: list[ShardReport]) -> None:
    rows = pq.read_table(table.url).sort_by("key").to_pylist()
    assert [(row["key"], row["number"], row["status"]) for row in rows] == [
        ("even-0", 2, "ok"),
        ("even-1", 4, "ok"),
        ("odd-0", 1, "ok"),
        ("odd-1", 3, "ok"),
        ("odd-2", None, "no_number"),
        ("odd-3", 7, "ok"),
    ]
    assert all((row["prompt"] is None) == (row["status"] != "ok") for row in rows)
    assert {(report.stem, report.ok) for report in reports} == {("odd", 3), ("even", 2)}
    assert table.finished(units[0]) is not None
    assert table.divide(units) == (units, []), "a resume has nothing to do"


def rows_of(table: PromptTable) -> list[dict[str, Any]]:
    return list(pq.read_table(table.url).sort_by("key").to_pylist())


@pytest.mark.parametrize("parts", [1, 2])
def test_a_source_of_ones_own_has_attempts_parts_reports_and_a_resume(
    units: list[Unit], source: NumberSource, tmp_path: Path, parts: int
) -> None:
    table = table_of(tmp_path / "out", source)
    worker = LearnWorker(Learner(SETTINGS, METHOD, source=source), table)
    notes: list[str] = []
    reports: list[Any] = []
    assert run_serially(tasks_of(units, parts), worker, reports.append, 2, notes.append) == {}
    assert sorted(note.partition(": ")[2] for note in notes) == [
        f"{units[1].url} is out of reach. Retrying in 1 s",
        f"{units[0].url} is out of reach. Retrying in 1 s",
    ]
    check(table, units, [report for report in reports if isinstance(report, ShardReport)])


@pytest.mark.usefixtures("ray_cluster")
def test_a_source_of_ones_own_runs_on_ray_with_the_same_rows(
    units: list[Unit], source: NumberSource, tmp_path: Path
) -> None:
    cloudpickle.register_pickle_by_value(number_source)  # the folder of the tests is not on the path of Ray's workers
    table = table_of(tmp_path / "out", source)
    notes: list[str] = []
    reports: list[ShardReport] = []
    plan = ActorPlan(1, 0, 1, 1, "cpu")
    learn = LearnStage(SETTINGS, METHOD, table.url, table.settings, source=source)
    stage = plan_stage(learn, plan, reports.append, concurrent_units=2)
    assert run_on_ray(tasks_of(units), [stage], ClusterSettings(attempts=2), on_note=notes.append) == {}
    assert len([note for note in notes if note.endswith("Retrying in 1 s")]) == 2
    check(table, units, reports)
    serial = table_of(tmp_path / "serial", source)
    worker = LearnWorker(Learner(SETTINGS, METHOD, source=source), serial)
    assert run_serially(tasks_of(units), worker, lambda _: None) == {}
    assert rows_of(serial) == rows_of(table)
