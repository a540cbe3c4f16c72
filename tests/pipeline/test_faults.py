"""What may befall a job: after each, every key once, and the files of an undisturbed run."""

import copy
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil
import pytest
from faulty import FaultyActor
from running import ROOT, RunningJob

import pez
from jobs import command
from jobs.caption import CaptionJob, caption
from pez.demo import scenes
from pipeline.rows import Row, ShardReport
from pipeline.run import ray as runner
from pipeline.run.ray import run_on_ray
from pipeline.run.serial import run_serially
from pipeline.run.stage import StagePlan
from pipeline.run.tasks import tasks_of
from pipeline.settings import CaptionSettings, ClusterSettings
from pipeline.sources.base import Item, Unit
from pipeline.sources.demo_shards import write_scenes
from pipeline.sources.inputs import expand_inputs
from pipeline.stages.learn import Learner, describe, learn_unit
from pipeline.stages.learn_stage import LearnWorker
from pipeline.table import PromptTable

SHARDS = 8
SETTINGS, METHOD = CaptionSettings(model="demo"), pez.PezSettings(tokens=6, steps=20, swaps=2)
DESCRIBED = describe(SETTINGS, METHOD, "cpu")


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tars of two pictures each."""
    folder = tmp_path_factory.mktemp("tars")
    pictured = scenes.held_out_scenes(2 * SHARDS)
    for t in range(SHARDS):
        write_scenes(folder / f"{t}.tar", pictured[2 * t : 2 * t + 2], first=2 * t)
    return folder


@pytest.fixture(scope="module")
def learner() -> Learner:
    return Learner(SETTINGS, METHOD)


@pytest.fixture(scope="module")
def whole(tars: Path, learner: Learner, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The Parquet files of an undisturbed run."""
    out = tmp_path_factory.mktemp("whole")
    worker = LearnWorker(learner, PromptTable(str(out), DESCRIBED))
    assert run_serially(tasks_of(expand_inputs([str(tars)])), worker, lambda _: None) == {}
    files = parquets(out)
    assert len(files) == SHARDS
    return files


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def words(tars: Path, out: Path, *more: object) -> list[object]:
    method = ["--tokens", METHOD.tokens, "--steps", METHOD.steps, "--swaps", METHOD.swaps]
    return ["--input", tars, "--output", out, "--model", "demo", *method, *more]


def rerun(tars: Path, out: Path) -> int:
    return caption(CaptionJob(str(out), (str(tars),), local=True, device="cpu", caption=SETTINGS, method=METHOD))


def parquets(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.parquet")}


def reports(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("_reports/*.json")}


def files(out: Path) -> list[str]:
    found = (path for path in out.rglob("*") if path.is_file())
    return sorted("_inputs" if path.parent.name == "_inputs" else path.name for path in found)


@pytest.mark.slow
def test_an_actor_killed_at_work_costs_no_row(tars: Path, whole: dict[str, bytes], out: Path) -> None:
    with RunningJob(*words(tars, out, "--actors", 1, "--shards-at-once", 2), log=out.with_name("log")) as job:
        job.wait_until(lambda: reports(out))
        [actor] = job.actors()
        actor.kill()
        assert job.wait() == 0
        printed = job.log.read_text()
    alone = r"\d: learning: the actor died\. Retrying"
    together = r"\d(, \d)+: learning: the actor died\. Retrying one at a time"
    assert len(re.findall(f"^note: ({alone}|{together})$", printed, re.M)) == 1
    assert not re.search("raylet|worker|Traceback", printed)  # Ray's own notices
    assert parquets(out) == whole
    assert (out / "_SUCCESS").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda stop: stop.name)
def test_a_stopped_job_leaves_no_process_and_goes_on(
    tars: Path, whole: dict[str, bytes], out: Path, stop: signal.Signals
) -> None:
    # One by one, so that not all are done when the first is.
    with RunningJob(*words(tars, out, "--actors", 1, "--shards-at-once", 1), log=out.with_name("log")) as job:
        job.wait_until(lambda: reports(out))
        # Without its raylet an agent of Ray ends too, but takes a minute over it.
        started = [process for process in job.started() if "Agent" not in process.name()]
        assert any(process in started for process in job.actors())
        told = time.monotonic()
        if stop == signal.SIGINT:
            os.killpg(job.process.pid, stop)  # as a terminal does
        else:
            job.process.send_signal(stop)
        status = job.wait(60)
        seconds = time.monotonic() - told
        assert psutil.wait_procs(started, timeout=60)[1] == []
        lines = job.log.read_text().splitlines()
    if stop != signal.SIGKILL:
        assert status == 130
        assert re.fullmatch(f"interrupted: [1-7] of {SHARDS} shards are done; re-run the command to resume", lines[-1])
        assert seconds < 45  # two or three where the machine is idle
    before = reports(out)
    assert 0 < len(before) < SHARDS
    assert not (out / "_SUCCESS").exists()
    assert rerun(tars, out) == 0
    assert parquets(out) == whole
    assert before.items() <= reports(out).items()  # what was done is left alone


@pytest.mark.slow
def test_a_lost_node_is_not_the_shards_fault_and_one_that_joins_works(
    tars: Path, whole: dict[str, bytes], out: Path
) -> None:
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        first = nodes.add_node(num_cpus=1)
        more = [
            "--address",
            nodes.address,
            "--actors",
            2,
            "--cpus-per-actor",
            1,
            "--attempts",
            1,
            "--shards-at-once",
            1,
        ]
        with RunningJob(*words(tars, out, *more), log=out.with_name("log")) as job:
            job.wait_until(lambda: reports(out))
            nodes.remove_node(first, allow_graceful=False)
            assert len(reports(out)) < SHARDS
            nodes.add_node(num_cpus=1)
            assert job.wait() == 0, job.log.read_text()
            printed = job.log.read_text()
    finally:
        nodes.shutdown()
    assert "learning: the node was lost. Retrying" in printed
    assert parquets(out) == whole


@pytest.mark.slow
def test_two_jobs_at_once_end_with_the_same_files(tars: Path, whole: dict[str, bytes], out: Path) -> None:
    logs = [out.with_name(name) for name in ("one", "two")]
    with (
        RunningJob(*words(tars, out, "--local"), log=logs[0]) as one,
        RunningJob(*words(tars, out, "--local"), log=logs[1]) as two,
    ):
        assert [one.wait(), two.wait()] == [0, 0], "".join(log.read_text() for log in logs)
    assert parquets(out) == whole
    own = [".huggingface.yaml", "_inputs", "_run.json", "_SUCCESS"]
    assert files(out) == sorted([*whole, *(f"{i}.json" for i in range(SHARDS)), *own])


Limited = Callable[..., tuple[int, str, str]]


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Limited:
    """limited(most, words): a job that cannot write files of more bytes, as on a disk that is full."""

    def run(most: int, *more: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["jobs.caption", *map(str, more)])
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        try:
            with pytest.raises(SystemExit) as ended:
                command.run(CaptionJob, None, caption)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def test_a_full_disk_leaves_nothing_half_written(
    tars: Path, whole: dict[str, bytes], out: Path, limited: Limited
) -> None:
    assert min(map(len, whole.values())) > 4096
    one = ["--input", tars / "0.tar", *words(tars, out, "--local", "--attempts", 1)[2:]]
    status, printed, errors = limited(4096, *one)
    assert status == 1, errors
    assert f"failed: {tars}/0.tar: cannot write {out}/0.parquet: File too large; see _failures/0.txt\n" in printed
    assert errors == ""
    assert files(out) == [".huggingface.yaml", "0.txt", "_inputs", "_run.json"]
    assert rerun(tars, out) == 0  # there is room again
    assert parquets(out) == whole


def test_a_disk_that_is_full_already_is_found_out_before_any_work(tars: Path, out: Path, limited: Limited) -> None:
    PromptTable(str(out), DESCRIBED).claim()  # an earlier run
    status, _, errors = limited(100, *words(tars, out, "--local"))
    assert status == 2
    assert errors == f"error: cannot write {out}/_run.json: File too large\n"
    assert files(out) == [".huggingface.yaml", "_run.json"]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("/proc/pez-captions", "cannot write /proc/pez-captions/_run.json: No such file or directory"),
        ("{tmp}/file/out", "--output is {tmp}/file/out, but {tmp}/file is a file; expected a folder"),
    ],
    ids=["read-only", "under a file"],
)
def test_an_output_that_takes_no_files_is_one_line_and_status_2(
    tars: Path,
    tmp_path: Path,
    output: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    line = words(tars, Path(output.format(tmp=tmp_path)), "--local")
    monkeypatch.setattr(sys, "argv", ["jobs.caption", *map(str, line)])
    with pytest.raises(SystemExit) as ended:
        command.run(CaptionJob, None, caption)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {message.format(tmp=tmp_path)}\n"


@pytest.fixture
def jumping_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the wall goes a day ahead and a day back, by turns."""
    real, calls = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + (86400.0 if next(calls) % 2 else -86400.0))


@pytest.mark.usefixtures("jumping_clock")
def test_a_clock_that_jumps_changes_no_file(tars: Path, whole: dict[str, bytes], learner: Learner, out: Path) -> None:
    table = PromptTable(str(out), DESCRIBED)
    report = learn_unit(Unit(str(tars / "0.tar"), "0"), learner, table)
    table.succeed()
    assert parquets(out) == {"0.parquet": whole["0.parquet"]}
    assert 0 < report.seconds < 3600


@pytest.mark.usefixtures("ray_cluster", "jumping_clock")
def test_a_clock_that_jumps_ends_no_shard_early(tmp_path: Path) -> None:
    done: list[str] = []
    notes: list[str] = []
    stage = StagePlan("learning", lambda: FaultyActor.options(num_cpus=0.5).remote(str(tmp_path)), 1, note_stem(done))
    shards = [Unit(f"mem://{i}", f"fine-{i}") for i in range(3)]
    assert run_on_ray(tasks_of(shards), [stage], ClusterSettings(shard_timeout=300.0), on_note=notes.append) == {}
    assert (sorted(done), notes) == (["fine-0", "fine-1", "fine-2"], [])


def note_stem(done: list[str]) -> Callable[[ShardReport], None]:
    return lambda report: done.append(report.stem)


class Enough(Exception):  # noqa: N818 - not an error
    """Ends a wait that would go on."""


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_without_resources_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_PATIENCE", 0.5)

    def note(line: str) -> None:
        raise Enough(line)

    starter = FaultyActor.options(num_gpus=1).remote
    stage = StagePlan("learning", lambda: starter(str(tmp_path)), 1, print, resources="1 GPU and 8 CPU")
    with pytest.raises(Enough) as told:
        run_on_ray(tasks_of([Unit("mem://a", "a")]), [stage], ClusterSettings(), on_note=note)
    assert re.fullmatch(
        r"learning: waiting for the first actor: each needs 1 GPU and 8 CPU, the cluster has 0 GPU \(0 free\) and "
        r"2 CPU \([\d.]+ free\)\. Still waiting for resources or for the model to load\.",
        str(told.value),
    )


def test_a_shard_that_cannot_be_read_in_passing_is_read_later(
    tars: Path, whole: dict[str, bytes], learner: Learner, out: Path
) -> None:
    shards = [Unit(str(out.with_name("late.tar")), "0"), Unit(str(tars / "1.tar"), "1")]
    notes: list[str] = []

    def note(line: str) -> None:  # by then it is there
        notes.append(line)
        out.with_name("late.tar").write_bytes((tars / "0.tar").read_bytes())

    done: list[str] = []
    worker = LearnWorker(learner, PromptTable(str(out), DESCRIBED))
    assert run_serially(tasks_of(shards), worker, note_stem(done), attempts=2, on_note=note) == {}
    assert done == ["1", "0"]
    assert len(notes) == 1
    assert re.fullmatch(r"0: cannot read .*late.tar: .*\. Retrying in 1 s", notes[0])


def test_an_error_of_one_shard_that_nobody_foresaw_leaves_the_others_alone(
    tars: Path, learner: Learner, out: Path
) -> None:
    (out / "0.parquet").mkdir(parents=True)  # in the way
    units = [Unit(str(tars / f"{i}.tar"), str(i)) for i in range(2)]
    failed = run_serially(tasks_of(units), LearnWorker(learner, PromptTable(str(out), DESCRIBED)), print)
    assert failed == {str(tars / "0.tar"): f"cannot write {out}/0.parquet: Is a directory"}
    assert (out / "1.parquet").is_file()


def test_another_run_that_was_quicker_is_not_written_over(tars: Path, learner: Learner, out: Path) -> None:
    shard, table = Unit(str(tars / "0.tar"), "0"), PromptTable(str(out), DESCRIBED)
    published: list[ShardReport] = []
    slow = copy.copy(learner)

    def overtaken(unit: Unit, items: Iterable[Item], parts: int = 1) -> Iterator[tuple[int, Row]]:
        rows = list(learner.learn(unit, items, parts))
        published.append(learn_unit(unit, learner, PromptTable(str(out), DESCRIBED)))
        return iter(rows)

    slow.learn = overtaken  # type: ignore[method-assign]
    assert learn_unit(shard, slow, table) == published[0]


@pytest.mark.slow
def test_ray_of_this_machine_listens_on_loopback_only() -> None:
    code = """
import psutil
from pipeline.run.ray import connect
from pipeline.settings import ClusterSettings
connect(ClusterSettings())
mine = psutil.Process()
listening = [c.laddr.ip for p in [mine, *mine.children(recursive=True)] for c in p.net_connections("tcp")
             if c.status == "LISTEN"]
print(len(listening), {ip.removeprefix("::ffff:") for ip in listening})
"""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    count, ips = done.stdout.split(maxsplit=1)
    assert int(count) > 3
    assert ips == "{'127.0.0.1'}\n"
