"""Stages on real actors: what dies, hangs or fails is retried, bounded and reported; all the rest is done."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from faulty import FaultyActor
from samples_on_disk import MakeTar, encoded

import pez
from jobs.caption import CaptionJob, caption
from pipeline.rows import ShardReport
from pipeline.run import ray as runner
from pipeline.run import work
from pipeline.run.ray import plan_stage, run_on_ray
from pipeline.run.resources import ActorPlan
from pipeline.run.stage import ActorStartError, StagePlan
from pipeline.run.tasks import tasks_of
from pipeline.settings import CaptionSettings, ClusterSettings
from pipeline.sources.base import Unit
from pipeline.sources.units import name_units
from pipeline.stages.learn import describe
from pipeline.stages.learn_stage import LearnStage
from pipeline.table import PromptTable

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine is slow, an actor may take so long to start that a note says so. Retries need not wait."""
    monkeypatch.setattr(runner, "_PATIENCE", 600.0)
    monkeypatch.setattr(work, "retry_delay", lambda _: 0.0)


def starter(folder: Path, **options: Any) -> Callable[[], Any]:
    return lambda: FaultyActor.options(num_cpus=0.5, max_concurrency=4).remote(str(folder), **options)


def run(
    folder: Path, names: list[str], actors: int = 2, concurrent_units: int = 1, **settings: Any
) -> tuple[list[str], dict[str, str], list[str]]:
    reports: list[ShardReport] = []
    notes: list[str] = []
    shards = [Unit(f"mem://{name}", name) for name in names]
    stage = StagePlan("learning", starter(folder), actors, reports.append, concurrent_units=concurrent_units)
    failed = run_on_ray(tasks_of(shards), [stage], ClusterSettings(**settings), on_note=notes.append)
    return sorted(r.stem for r in reports), failed, notes


def test_every_shard_is_done_once(tmp_path: Path) -> None:
    names = [f"fine-{i:02d}" for i in range(20)]
    assert run(tmp_path, names) == (names, {}, [])
    assert all((tmp_path / name).read_text() == "x" for name in names)


def test_a_shard_whose_actor_dies_is_done_by_another(tmp_path: Path) -> None:
    done, failed, notes = run(tmp_path, ["fine-0", "kills-once", "fine-1", "fine-2"])
    assert (done, failed) == (["fine-0", "fine-1", "fine-2", "kills-once"], {})
    assert notes == ["kills-once: learning: the actor died. Retrying"]


def test_a_shard_that_kills_every_actor_is_given_up(tmp_path: Path) -> None:
    done, failed, _ = run(tmp_path, ["fine-0", "kills-always", "fine-1", "fine-2"], attempts=2)
    assert done == ["fine-0", "fine-1", "fine-2"]
    assert failed == {"mem://kills-always": "learning: the actor died (2 attempts)"}


def test_a_shard_that_hangs_is_retried(tmp_path: Path) -> None:
    done, failed, notes = run(tmp_path, ["fine-0", "hangs", "fine-1"], shard_timeout=3.0)
    assert (done, failed) == (["fine-0", "fine-1", "hangs"], {})
    assert notes == ["hangs: learning: timed out after 3 s. Retrying"]


def test_of_shards_in_work_together_the_one_that_kills_is_found(tmp_path: Path) -> None:
    names = ["slow-0", "kills-always", "slow-1", "fine-0", "fine-1"]
    done, failed, notes = run(tmp_path, names, actors=1, concurrent_units=3, attempts=2)
    assert done == ["fine-0", "fine-1", "slow-0", "slow-1"]
    assert failed == {"mem://kills-always": "learning: the actor died (2 attempts)"}
    assert notes[0].endswith("learning: the actor died. Retrying one at a time")
    assert notes[0].split(": ")[0].split(", ") == ["slow-0", "kills-always", "slow-1"]
    assert notes[1:] == ["kills-always: learning: the actor died. Retrying"]


def test_a_shard_that_fails_says_why_in_one_line(tmp_path: Path) -> None:
    done, failed, _ = run(tmp_path, ["fine-0", "bad-0"])
    assert done == ["fine-0"]
    assert failed == {"mem://bad-0": "learning: this shard is bad (3 attempts)"}


def test_an_error_that_no_retry_can_fix_is_tried_once(tmp_path: Path) -> None:
    done, failed, notes = run(tmp_path, ["fine-0", "hopeless-0"], attempts=3)
    assert (done, notes) == (["fine-0"], [])
    assert failed == {"mem://hopeless-0": "learning: not a tar: a picture"}
    assert (tmp_path / "hopeless-0").read_text() == "x"


def test_a_model_that_does_not_load_ends_the_job(tmp_path: Path) -> None:
    stage = StagePlan("learning", starter(tmp_path, start_error="no such weights"), 1, print)
    with pytest.raises(ActorStartError, match="no such weights"):
        run_on_ray(tasks_of([Unit("mem://a", "a")]), [stage], ClusterSettings())


def test_a_second_stage_takes_what_the_first_has_done(tmp_path: Path) -> None:
    (tmp_path / "2").mkdir()
    names = ["fine-0", "kills-once", "bad-0", "fine-1"]
    ended: list[list[str]] = [[], []]
    stages = [
        StagePlan("learning", starter(tmp_path), 2, lambda report: ended[0].append(report.stem)),
        StagePlan("verification", starter(tmp_path / "2"), 1, lambda report: ended[1].append(report.stem)),
    ]
    failed = run_on_ray(tasks_of([Unit(f"mem://{name}", name) for name in names]), stages, ClusterSettings())
    assert failed == {"mem://bad-0": "learning: this shard is bad (3 attempts)"}
    assert sorted(ended[0]) == sorted(ended[1]) == ["fine-0", "fine-1", "kills-once"]


def test_a_second_stage_gives_the_room_back_that_a_lost_actor_left(tmp_path: Path) -> None:
    """Each actor takes the whole cluster: one of the second stage starts when one of the first dies."""
    ended: list[str] = []
    folders = (tmp_path / "1", tmp_path / "2")
    for folder in folders:
        folder.mkdir()

    def whole(folder: Path) -> Callable[[], Any]:
        return lambda: FaultyActor.options(num_cpus=2, max_concurrency=2).remote(str(folder))

    stages = [
        StagePlan("learning", whole(folders[0]), 1, lambda _: None),
        StagePlan("verification", whole(folders[1]), 1, lambda report: ended.append(report.stem)),
    ]
    shards = [Unit(f"mem://{name}", name) for name in ("fine-0", "kills-once", "fine-1")]
    assert run_on_ray(tasks_of(shards), stages, ClusterSettings()) == {}
    assert sorted(ended) == ["fine-0", "fine-1", "kills-once"]


def test_a_shard_may_enter_at_the_second_stage(tmp_path: Path) -> None:
    ended: list[list[str]] = [[], []]
    (tmp_path / "2").mkdir()
    stages = [
        StagePlan("learning", starter(tmp_path), 1, lambda report: ended[0].append(report.stem)),
        StagePlan("verification", starter(tmp_path / "2"), 1, lambda report: ended[1].append(report.stem),
              units=[Unit("mem://fine-1", "fine-1")]),
    ]  # fmt: skip
    assert run_on_ray(tasks_of([Unit("mem://fine-0", "fine-0")]), stages, ClusterSettings()) == {}
    assert [sorted(stems) for stems in ended] == [["fine-0"], ["fine-0", "fine-1"]]


def test_a_word_that_the_model_does_not_have_ends_the_job_and_leaves_the_output_free(
    scene_tars: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = pez.PezSettings(tokens=4, steps=2, swaps=0)
    job = CaptionJob(str(tmp_path / "out"), tuple(scene_tars), caption=CaptionSettings(model="demo"), method=method)
    wrong = dataclasses.replace(job, method=dataclasses.replace(method, allowlist=("zzyzx", "red")))
    with pytest.raises(ActorStartError, match="'zzyzx' in the allowlist is not one token of this model"):
        caption(wrong)
    assert not any("Retrying" in stream for stream in capsys.readouterr())
    assert caption(dataclasses.replace(job, local=True)) == 0
    assert pq.read_table(job.output).num_rows == 12


@pytest.mark.slow
def test_one_and_two_actors_write_the_same_rows(make_tar: MakeTar, images: list, tmp_path: Path) -> None:
    shards = name_units(
        [make_tar(f"in/{t}.tar", [(f"{i:03d}.png", encoded(images[i])) for i in range(t, 20, 4)]) for t in range(4)]
    )
    settings, method = CaptionSettings(model="demo", lanes=16), pez.PezSettings(tokens=6, steps=20)
    described = describe(settings, method, "cpu")
    tables = []
    for actors, threads, concurrent_units in ((1, 2, 4), (2, 1, 1)):
        plan = ActorPlan(actors, 0, 2 / actors, threads, "cpu")
        table = PromptTable(str(tmp_path / f"out-{actors}"), described)
        plan = dataclasses.replace(plan, actors=actors)
        stage = plan_stage(
            LearnStage(settings, method, table.url, described), plan, lambda _: None, concurrent_units=concurrent_units
        )
        assert run_on_ray(tasks_of(shards), [stage], ClusterSettings()) == {}
        tables.append(pq.read_table(table.url).sort_by("key"))
    assert tables[0].num_rows == 20
    assert tables[0].equals(tables[1])


def test_an_idle_actor_above_the_minimum_ends_while_another_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_IDLE", 0.1)
    ended: list[object] = []
    end = runner._Pool._end

    def noted(pool: Any, actor: Any) -> None:
        ended.append(pool.queue.busy)
        end(pool, actor)
        (tmp_path / "go on").touch()

    monkeypatch.setattr(runner._Pool, "_end", noted)
    names = ["waits-0", "fine-1"]
    assert run(tmp_path, names, min_actors=1) == (sorted(names), {}, [])
    assert ended == [True, False], "one while the other worked, which ended with the job"
