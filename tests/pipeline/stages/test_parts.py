"""Large shards in parts: the same file as of the whole, what is done is kept, and a lost actor loses one part."""

import dataclasses
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import psutil
import pytest
from faulty import FaultyActor
from moto.server import ThreadedMotoServer
from samples_on_disk import MakeTar, encoded

import pez
from pipeline.rows import ShardReport
from pipeline.run.ray import plan_stage, run_on_ray
from pipeline.run.resources import ActorPlan
from pipeline.run.serial import run_serially
from pipeline.run.stage import StagePlan
from pipeline.run.tasks import Merge, split, tasks_of
from pipeline.settings import CaptionSettings, ClusterSettings
from pipeline.sources.base import Unit, UnitError
from pipeline.stages.learn import Learner, describe, learn_part, learn_unit
from pipeline.stages.learn_stage import LearnStage, LearnWorker
from pipeline.stages.parts import PartReport, merge_parts, sweep_parts
from pipeline.table import PromptTable

SETTINGS = CaptionSettings(model="demo", lanes=16)
METHOD = pez.PezSettings(tokens=4, steps=5, swaps=2)
DESCRIBED = describe(SETTINGS, METHOD, "cpu")


@pytest.fixture(scope="module")
def learner() -> Learner:
    return Learner(SETTINGS, METHOD)


@pytest.fixture
def table(tmp_path: Path) -> PromptTable:
    return PromptTable(str(tmp_path / "out"), DESCRIBED)


@pytest.fixture
def shard(make_tar: MakeTar, images: list) -> Unit:
    """Eleven keys: one broken, one without a picture, which comes first and is read last."""
    pictures = [(f"{i:02d}.png", encoded(images[i])) for i in range(10)]
    pictures[4] = ("04.png", b"\x89PNG broken")
    return Unit(make_tar("in/big.tar", [("text.txt", b"no picture"), *pictures]), "big")


@pytest.fixture
def undivided(shard: Unit, learner: Learner, tmp_path: Path) -> bytes:
    learn_unit(shard, learner, PromptTable(str(tmp_path / "undivided"), DESCRIBED))
    return (tmp_path / "undivided" / "big.parquet").read_bytes()


@pytest.mark.parametrize("parts", [2, 3, 20])  # of 20, nine have no sample
def test_parts_make_the_same_file_as_the_whole(
    shard: Unit, learner: Learner, table: PromptTable, undivided: bytes, parts: int
) -> None:
    reports: list[PartReport | ShardReport] = []
    assert run_serially(split(shard, parts), LearnWorker(learner, table), reports.append) == {}
    assert Path(f"{table.url}/big.parquet").read_bytes() == undivided
    assert [type(report) for report in reports] == [PartReport] * parts + [ShardReport]
    assert sum(report.ok for report in reports[:-1]) == reports[-1].ok == 9
    whole = reports[-1]
    assert isinstance(whole, ShardReport)
    assert whole.failed == {"bad_image": 1, "no_image": 1}
    assert reports[-1].seconds == pytest.approx(sum(report.seconds for report in reports[:-1]), abs=1e-3)
    assert table.folders("_parts") == set()


def test_finished_parts_are_not_learned_again(
    shard: Unit, learner: Learner, table: PromptTable, undivided: bytes
) -> None:
    parts = split(shard, 3)
    done = [learn_part(part, learner, table) for part in parts[:2]]
    written = {path: path.stat().st_mtime_ns for path in Path(table.url).rglob("*-of-3.parquet")}
    reports: list[PartReport | ShardReport] = []
    run_serially(parts, LearnWorker(learner, table), reports.append)
    assert len(written) == 2
    assert reports[:2] == done
    assert Path(f"{table.url}/big.parquet").read_bytes() == undivided


def test_leftovers_of_another_division_are_ignored_and_swept(
    shard: Unit, learner: Learner, table: PromptTable, undivided: bytes
) -> None:
    learn_part(split(shard, 3)[0], learner, table)
    unfinished = dataclasses.replace(shard, stem="other")
    learn_part(split(unfinished, 3)[0], learner, table)
    learn_unit(shard, learner, table)
    assert Path(f"{table.url}/big.parquet").read_bytes() == undivided
    sweep_parts([shard], table)
    assert table.folders("_parts") == {"other"}  # perhaps in work by another run


def test_parts_of_two_tars_do_not_make_a_shard(
    shard: Unit, learner: Learner, table: PromptTable, make_tar: MakeTar, images: list
) -> None:
    first, second = split(shard, 2)
    learn_part(first, learner, table)
    make_tar("in/big.tar", [(f"{i:02d}.png", encoded(images[i])) for i in range(11)])  # as many, other names
    learn_part(second, learner, table)
    with pytest.raises(
        UnitError, match="replaced while its parts were learned, or parts were removed; re-run the command"
    ):
        merge_parts(Merge(shard, 2), table)
    assert run_serially([first, second], LearnWorker(learner, table), lambda _: None) == {}


def test_a_part_that_comes_after_the_merge_is_not_learned(shard: Unit, learner: Learner, table: PromptTable) -> None:
    run_serially(split(shard, 2), LearnWorker(learner, table), lambda _: None)
    Path(shard.url).unlink()
    late = learn_part(split(shard, 2)[1], learner, table)
    assert isinstance(late, PartReport)
    assert late.ok == 0
    merged = LearnWorker(learner, table).run(Merge(shard, 2))
    assert isinstance(merged, ShardReport)
    assert merged.ok == 9


def test_a_part_of_an_empty_tar_says_so(make_tar: MakeTar, learner: Learner, table: PromptTable) -> None:
    part = split(Unit(make_tar("in/a.tar", []), "a"), 2)[0]
    with pytest.raises(UnitError, match="no image in .*; expected members like 0001.jpg"):
        learn_part(part, learner, table)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 on this machine with one bucket."""
    for name, value in {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
    yield "s3://bucket"
    server.stop()
    fsspec.filesystem("s3").clear_instance_cache()


def test_parts_and_retries_work_in_an_object_store(
    store: str, shard: Unit, learner: Learner, undivided: bytes, make_tar: MakeTar, images: list
) -> None:
    table = PromptTable(f"{store}/out", DESCRIBED)
    table.claim()
    table.record([shard])
    assert run_serially(split(shard, 3), LearnWorker(learner, table), lambda _: None) == {}
    assert table.fs.cat_file("bucket/out/big.parquet") == undivided
    assert table.folders("_parts") == set()
    assert table.divide([shard]) == ([shard], [])
    assert table.divide([shard], retry_failed=True) == ([], [shard])

    pictures = [(f"{i:02d}.png", encoded(images[i])) for i in range(10)]
    make_tar("in/big.tar", [("text.txt", b"no picture"), *pictures])
    reports: list[PartReport | ShardReport] = []
    # As the job does it: the parts of a finished shard have nothing to do, the shard itself is learned again.
    assert run_serially(split(shard, 3), LearnWorker(learner, table, retry_failed=True), reports.append) == {}
    assert [report.ok for report in reports] == [0, 0, 0, 10]
    fresh = PromptTable(f"{store}/fresh", DESCRIBED)
    learn_unit(shard, learner, fresh)
    assert table.fs.cat_file("bucket/out/big.parquet") == table.fs.cat_file("bucket/fresh/big.parquet")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_actor_loses_its_part_only(shard: Unit, tmp_path: Path, images: list, make_tar: MakeTar) -> None:
    method = pez.PezSettings(tokens=4, steps=100, swaps=2)
    described = describe(SETTINGS, method, "cpu")
    table = PromptTable(str(tmp_path / "out"), described)
    reports: list[PartReport | ShardReport] = []
    notes: list[str] = []
    actors: list[psutil.Process] = []

    def kill_after_the_second_part() -> None:
        ended = time.monotonic() + 500
        while len(list(Path(table.url).glob("_parts/big/*"))) < 2 and time.monotonic() < ended:
            time.sleep(0.05)
        for process in psutil.Process().children(recursive=True):
            if "WorkerActor" in "".join(process.cmdline()):
                actors.append(process)
                process.send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill_after_the_second_part, daemon=True)
    killer.start()
    learn = LearnStage(SETTINGS, method, table.url, described)
    stage = plan_stage(learn, ActorPlan(1, 0, 1.0, 1, "cpu"), reports.append)
    assert run_on_ray(split(shard, 4), [stage], ClusterSettings(), on_note=notes.append) == {}
    killer.join()
    assert len(actors) == 1
    notes = [note for note in notes if "waiting for the first actor" not in note]  # said where a machine is slow
    assert len(notes) == 1
    assert notes[0].startswith("big, part ")
    assert "the actor died. Retrying" in notes[0]
    assert sorted(r.part for r in reports if isinstance(r, PartReport)) == [0, 1, 2, 3]
    assert len(reports) == 5

    learn_unit(shard, Learner(SETTINGS, method), whole := PromptTable(str(tmp_path / "whole"), described))
    assert Path(f"{table.url}/big.parquet").read_bytes() == Path(f"{whole.url}/big.parquet").read_bytes()


@pytest.mark.usefixtures("ray_cluster")
def test_a_failed_part_is_named_and_a_shard_leaves_the_stage_once(tmp_path: Path) -> None:
    ended: list[list[str]] = [[], []]
    faulty = FaultyActor.options(num_cpus=0.5, max_concurrency=2)
    stages = [
        StagePlan("learning", lambda: faulty.remote(str(tmp_path)), 2, lambda r: ended[0].append(r.stem)),
        StagePlan("verification", lambda: faulty.remote(str(tmp_path / "2")), 2, lambda r: ended[1].append(r.stem)),
    ]
    (tmp_path / "2").mkdir()
    shards = [Unit(f"mem://{name}", name) for name in ("fine-0", "bad-0", "fine-1")]
    failed = run_on_ray(tasks_of(shards, 3), stages, ClusterSettings(attempts=1))
    assert list(failed) == ["mem://bad-0"]
    assert failed["mem://bad-0"].startswith("learning, part ")
    assert failed["mem://bad-0"].endswith("-of-3: this shard is bad")
    assert sorted(ended[0]) == ["fine-0"] * 4 + ["fine-1"] * 4  # three parts and the merge
    assert sorted(ended[1]) == ["fine-0", "fine-1"]
