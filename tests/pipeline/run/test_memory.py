"""Memory that runs short: Ray kills actors, for which no shard can be blamed."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from faulty import FaultyActor
from ray.exceptions import OutOfMemoryError, RayActorError, RayError
from running import ROOT, RunningJob

from pipeline.run import ray as runner
from pipeline.run.ray import memory_shortage, run_on_ray
from pipeline.run.stage import StagePlan
from pipeline.run.tasks import tasks_of
from pipeline.settings import ClusterSettings
from pipeline.sources.base import Unit
from pipeline.sources.demo_shards import demo_shards

FEW_STEPS = ("--model", "demo", "--tokens", "4", "--steps", "3", "--swaps", "0")


@pytest.fixture
def as_if_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """An actor that is killed counts as one that Ray ended for want of memory."""

    def shortage(error: RayError) -> str | None:
        return "memory ran short" if isinstance(error, RayActorError) else None

    monkeypatch.setattr(runner, "memory_shortage", shortage)
    monkeypatch.setattr(runner, "_PATIENCE", 600.0)


@pytest.mark.usefixtures("ray_cluster", "as_if_memory")
def test_memory_that_is_short_for_a_moment_costs_no_shard(tmp_path: Path) -> None:
    names = ["kills-once-0", "slow-0", "slow-1", "fine-0"]
    done: list[str] = []
    notes: list[str] = []
    actor = FaultyActor.options(num_cpus=0.5, max_concurrency=4)
    stage = StagePlan(
        "learning", lambda: actor.remote(str(tmp_path)), 1, lambda report: done.append(report.stem), concurrent_units=3
    )
    tasks = tasks_of(Unit(f"mem://{name}", name) for name in names)
    assert run_on_ray(tasks, [stage], ClusterSettings(attempts=1), on_note=notes.append) == {}
    assert sorted(done) == sorted(names)
    [note] = notes
    assert note == (
        "kills-once-0, slow-0, slow-1: learning: memory ran short. Retrying in 1 s; "
        "fewer --actors or smaller --lanes need less memory"
    )


def test_what_ray_writes_of_memory_becomes_a_few_words() -> None:
    error = OutOfMemoryError(
        "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: f0ac) was "
        "1.75GB used / 23.54GB limit (0.074461)\nOOM kill reason: Memory usage 1878020096B exceeded threshold of "
        "505521248B (2.0% of 25276063744B limit)\nObject store memory usage: [- objects spillable: 0\n"
    )
    line = "memory ran short on node 10.0.0.7 (1.75GB of 23.54GB used, Ray kills actors above 2.0%)"
    assert memory_shortage(error) == line
    assert memory_shortage(OutOfMemoryError("other words of another Ray")) == "memory ran short"
    assert memory_shortage(RayActorError()) is None


@pytest.mark.slow
def test_memory_that_stays_short_ends_the_job_with_a_reason_for_each_shard(
    scene_tars: list[str], tmp_path: Path
) -> None:
    line = [sys.executable, "-m", "jobs.caption", "--input", *scene_tars, "--output", str(tmp_path / "out"), *FEW_STEPS]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["RAY_memory_usage_threshold"] = "0.01"
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    reason = r"learning: memory ran short on node 127.0.0.1 \(.* of .* used, Ray kills actors above 1.0%\)"
    for tar in scene_tars:
        assert len([x for x in lines if re.fullmatch(rf"failed: {re.escape(tar)}: {reason} \(3 attempts\)", x)]) == 1
    assert [line for line in lines if "fewer --actors or smaller --lanes need less memory" in line]
    assert len(lines) < 20


@pytest.mark.slow
@pytest.mark.alone  # it takes the memory that is free
def test_memory_of_the_machine_that_is_short_for_two_seconds_costs_no_shard(tmp_path: Path) -> None:
    threshold = used() + 0.3  # far above what the job itself needs
    assert threshold < 0.85, "this test needs a machine with free memory"
    words = ["--input", *demo_shards(), "--output", tmp_path / "out", "--model", "demo", "--shards-at-once", 1]
    words += ["--steps", 500, "--swaps", 24, "--candidates", 32]  # so that work is left when memory runs short
    environment = {"RAY_memory_usage_threshold": f"{threshold:.3f}"}
    with RunningJob(*words, log=tmp_path / "log", env=environment) as job:
        job.wait_until(lambda: list(tmp_path.glob("out/_reports/*.json")))
        taken = b"x" * int((threshold + 0.05 - used()) * psutil.virtual_memory().total)
        time.sleep(2)
        del taken
        assert job.wait() == 0, job.log.read_text()
    assert "memory ran short" in job.log.read_text()
    assert len(list(tmp_path.glob("out/*.parquet"))) == 4


def used() -> float:
    """Part of the machine's memory that is in use."""
    memory = psutil.virtual_memory()
    return (memory.total - memory.available) / memory.total
