"""Verification as a stage on Ray: it survives what the first stage survives, and writes the rows of a serial run."""

import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from PIL import Image
from running import ROOT
from samples_on_disk import MakeTar, encoded

import pez
from pipeline.run.ray import plan_stage, run_on_ray
from pipeline.run.resources import ActorPlan
from pipeline.run.serial import run_serially
from pipeline.run.stage import StagePlan
from pipeline.run.tasks import tasks_of
from pipeline.settings import CaptionSettings, ClusterSettings, VerifySettings
from pipeline.sources.units import name_units
from pipeline.stages.learn import Learner, describe
from pipeline.stages.learn_stage import LearnStage, LearnWorker
from pipeline.stages.verification import verified_table
from pipeline.stages.verify import Verifier
from pipeline.stages.verify_stage import VerifyStage, VerifyWorker
from pipeline.table import PromptTable

SETTINGS, METHOD = CaptionSettings(model="demo", lanes=16), pez.PezSettings(tokens=4, steps=3, swaps=0)
VERIFY = VerifySettings(verify="demo", verify_steps=1)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_both_stages_on_ray_with_a_verifier_killed_write_what_a_serial_run_writes(
    scene_tars: list[str], tmp_path: Path
) -> None:
    tasks = tasks_of(name_units(scene_tars))
    described = describe(SETTINGS, METHOD, "cpu")
    serial, spread = (PromptTable(str(tmp_path / name), described) for name in ("serial", "ray"))
    learner = LearnWorker(Learner(SETTINGS, METHOD), serial)
    assert run_serially(tasks, learner, lambda _: None) == {}
    verifier = VerifyWorker(Verifier(VERIFY, "demo"), verified_table(serial, VERIFY, "cpu"))
    assert run_serially(tasks, verifier, lambda _: None) == {}

    plan = ActorPlan(1, 0.0, 1.0, 1, "cpu")
    learn = plan_stage(LearnStage(SETTINGS, METHOD, spread.url, described), plan, lambda _: None)
    actors: list[Any] = []
    reported: list[str] = []

    def report(of: Any) -> None:
        reported.append(of.stem)
        if len(reported) == 1:
            ray.kill(actors[0])

    # Threads as the serial run has: on a CPU the last bits of a picture depend on their number.
    plan = ActorPlan(1, 0.0, 1.0, torch.get_num_threads(), "cpu")
    stage = plan_stage(VerifyStage.of(VERIFY, verified_table(spread, VERIFY, "cpu")), plan, report)

    def start() -> Any:
        actors.append(stage.start_actor())
        return actors[-1]

    notes: list[str] = []
    killed = StagePlan(stage.name, start, stage.actors, stage.on_report)
    assert run_on_ray(tasks, [learn, killed], ClusterSettings(), on_note=notes.append) == {}
    assert len(actors) == 2
    assert any("verification: the actor died. Retrying" in note for note in notes)
    assert sorted(reported) == ["scenes-0", "scenes-1", "scenes-2"]
    tables = [pq.read_table(table.url).sort_by("key") for table in (serial, spread)]
    assert tables[0].num_rows == 12
    assert tables[0].equals(tables[1])


def job(*words: object) -> list[str]:
    return [sys.executable, "-m", *map(str, words)]


def ran(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(job(*words), cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)


def largest_difference(one: Path, other: Path) -> int:
    """Of the pixels in two tars of the same pictures."""

    def pixels(tar: tarfile.TarFile, name: str) -> np.ndarray:
        file = tar.extractfile(name)
        assert file is not None
        return np.asarray(Image.open(file), np.int16)

    with tarfile.open(one) as a, tarfile.open(other) as b:
        assert a.getnames() == b.getnames()
        names = [name for name in a.getnames() if name.endswith(".png")]
        pairs = [[pixels(tar, name) for tar in (a, b)] for name in names]
    return max(int(np.abs(x - y).max()) for x, y in pairs)


@pytest.mark.slow
def test_a_killed_verification_goes_on_where_it_stopped(
    make_tar: MakeTar, images: list[Image.Image], tmp_path: Path
) -> None:
    for t in range(5):
        make_tar(f"in/{t}.tar", [(f"{t}-{i}.png", encoded(images[4 * t + i])) for i in range(4)])
    captions = ["jobs.caption", "--input", tmp_path / "in", "--model", "demo", "--steps", 5, "--swaps", 0]
    verify = ["--verify", "demo", "--verify-steps", 20, "--keep-images"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    concurrent_units = ran(*captions, *verify, "--output", whole)  # on Ray
    assert concurrent_units.returncode == 0, concurrent_units.stderr
    assert "verified 5/5 shards  20 prompts" in concurrent_units.stdout
    assert ran(*captions, "--output", out, "--local").returncode == 0

    process = subprocess.Popen(job("jobs.verify", out, *verify, "--local"), cwd=ROOT, stdout=subprocess.DEVNULL)
    while len(list(out.glob("_verified/*.json"))) < 2:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {p.name: p.stat().st_mtime_ns for p in out.glob("_verified/*.json")}
    assert 2 <= len(done) < 5

    again = ran("jobs.verify", out, *verify)  # on Ray
    assert again.returncode == 0, again.stderr
    assert "verified 5/5 shards" in again.stdout
    assert {name: (out / "_verified" / name).stat().st_mtime_ns for name in done} == done
    one, other = (pq.read_table(folder).sort_by("key") for folder in (whole, out))
    scores = ["regenerated_similarity", "regenerated_similarities"]
    assert one.drop_columns(scores).equals(other.drop_columns(scores))
    # On another number of threads a pixel may differ by one of 255.
    assert other[scores[0]].to_pylist() == pytest.approx(one[scores[0]].to_pylist(), abs=1e-3)
    for tar in whole.glob("_regenerated/*.tar"):
        assert largest_difference(tar, out / "_regenerated" / tar.name) <= 1
