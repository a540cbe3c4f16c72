"""Plans: the arithmetic by hand and by playing the driver, and throughputs that are measured, never made up."""

import heapq
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pez
from jobs import command
from jobs import plan as job
from pipeline.description import describe
from pipeline.rows import Row
from pipeline.run.estimate import parts_that_balance, plan_job, shard_size_that_balances
from pipeline.settings import CaptionSettings
from pipeline.sources.base import Unit
from pipeline.table import PromptTable


def test_a_plan_by_hand() -> None:
    # 1,000 shards of 10,000 images, 1,000 s each at 10 images/s; 64 GPUs take 16 rounds.
    planned = plan_job(10_000_000, 64, 10.0, 10_000, price=2.5)
    assert (planned.shards, planned.tasks, planned.task_seconds) == (1000, 1000, 1000.0)
    assert planned.hours == pytest.approx(16_000 / 3600)
    assert planned.gpu_hours == pytest.approx(64 * 16_000 / 3600)
    assert planned.cost == pytest.approx(2.5 * 64 * 16_000 / 3600)
    assert planned.idle == pytest.approx(1 - 1000 / (16 * 64))
    assert planned.lost_seconds == 500.0


def test_parts_lose_less_and_leave_fewer_idle() -> None:
    whole, parts = (plan_job(1_000_000, 64, 10.0, 10_000, parts=n) for n in (1, 8))
    assert parts.lost_seconds == whole.lost_seconds / 8
    assert [whole.idle, parts.idle] == pytest.approx([1 - 100 / 128, 1 - 800 / (13 * 64)])


@given(images=st.integers(1, 3000), gpus=st.integers(1, 9), shard_size=st.integers(1, 500), parts=st.integers(1, 5))
def test_the_hours_are_those_of_a_driver_that_gives_each_idle_gpu_the_next_task(
    images: int, gpus: int, shard_size: int, parts: int
) -> None:
    free = [0.0] * gpus
    for start in range(0, images, shard_size):
        for _ in range(parts):
            heapq.heappush(free, heapq.heappop(free) + min(shard_size, images - start) / parts)
    assert plan_job(images, gpus, 1.0, shard_size, parts=parts).hours * 3600 == pytest.approx(max(free))


@given(images=st.integers(1, 10**8), gpus=st.integers(1, 200), shard_size=st.integers(1, 10**5))
def test_the_advice_balances(images: int, gpus: int, shard_size: int) -> None:
    parts = parts_that_balance(images, gpus, shard_size)
    if images % shard_size == 0 and shard_size >= 100 * gpus:
        assert plan_job(images, gpus, 1.0, shard_size, parts=parts).idle <= 0.0201
    assert shard_size / parts_that_balance(images, gpus, shard_size, limit=50) <= 50
    size = shard_size_that_balances(images, gpus)
    assert size == 1 or plan_job(images, gpus, 1.0, size).idle <= 0.02


def run(
    words: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[object, str, str]:
    monkeypatch.setattr(sys, "argv", ["jobs.plan", "--images", "10000000", "--gpus", "64", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        command.run(job.PlanJob, job.__doc__, job.plan)
    told = capsys.readouterr()
    return ended.value.code, told.out, told.err


def test_a_plan_tells_hours_cost_balance_and_loss(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(["--images-per-second", 10, "--price-per-gpu-hour", 2], monkeypatch, capsys)
    assert status == 0
    assert out.splitlines() == [
        "10,000,000 images on 64 GPUs at 10 images/s per GPU (as given)",
        "4.44 hours, 284.4 GPU-hours, $568.89 at $2.00 per GPU-hour",
        "1,000 shards of 10,000 images: 16 min 40 s per task, 15.6 tasks per GPU; "
        "GPUs are idle 2.3% of the time, waiting for the last tasks",
        "losing a GPU (such as a reclaimed spot instance) costs 8 min 20 s of work on average, 16 min 40 s at most",
        "each GPU needs 1.1 CPU cores: one for the thread that drives it, and 0.10 to read, decode and write "
        "(10.0 ms of CPU time per image, as measured for JPEG photos of 512x512)",
        "better: --parts 4 (4.38 hours, $560.00, losing a GPU costs 2 min 05 s), or shards of 2,000 images",
    ]
    lines = run(["--images-per-second", 10, "--images", 5000, "--gpus", 1], monkeypatch, capsys)[1].splitlines()
    assert lines[0] == "5,000 images on 1 GPU at 10 images/s per GPU (as given)"
    assert lines[2].startswith("1 shard of 10,000 images: ")


def test_a_plan_tells_the_cores_of_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {"cpu_seconds_per_image": 0.05, "image_size": 2048, "machine": "two cores"}
    (tmp_path / "pipeline.json").write_text(json.dumps(result))
    words = ["--images-per-second", 40, "--pipeline", tmp_path / "pipeline.json"]
    out = run(words, monkeypatch, capsys)[1]
    assert "each GPU needs 3.0 CPU cores: one for the thread that drives it, and 2.00 to read" in out
    assert "(50.0 ms of CPU time per image, measured with photos of 2048x2048 on two cores)" in out


def test_a_plan_warns_of_tasks_too_small_for_the_lanes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    warning = (
        "4 tasks of 20 images, 12 searches each by default, fill 960 of a GPU's 1,024 lanes, which costs as much time as all: "
        "--shards-at-once 6"
    )
    words = ["--images-per-second", 40, "--shard-size"]
    assert warning in run([*words, 20], monkeypatch, capsys)[1].splitlines()
    assert warning in run([*words, 200, "--parts", 10], monkeypatch, capsys)[1].splitlines()
    assert "lanes" not in run([*words, 22], monkeypatch, capsys)[1]
    assert "lanes" not in run([*words, 20, "--images", 80, "--gpus", 1], monkeypatch, capsys)[1]


def test_a_throughput_of_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = PromptTable(str(tmp_path / "trial"), {"model": "ViT-H-14", "device": "cuda", "tokens": 8, "steps": 300})
    table.claim()
    for name, images, seconds in (("a", 30, 2.0), ("b", 50, 6.0)):
        rows = [Row(f"{i}", f"{name}.tar", "ok", similarity=0.5) for i in range(images)]
        table.publish(Unit(f"{name}.tar", name), [*rows, Row("bad", f"{name}.tar", "bad_image")], seconds)
    status, out, _ = run(["--report", table.url], monkeypatch, capsys)
    assert status == 0
    assert (
        f"at 10 images/s per GPU (measured: 80 images in 2 shards of {table.url}, ViT-H-14, 8 tokens, 300 steps)" in out
    )
    assert "at 20 images/s" in run(["--report", table.url, "--actors-per-gpu", 2], monkeypatch, capsys)[1]

    on_cpu = PromptTable(str(tmp_path / "cpu"), describe(CaptionSettings(model="demo"), pez.PezSettings(), "cpu"))
    on_cpu.claim()
    on_cpu.publish(Unit("a.tar", "a"), [Row("1", "a.tar", "ok", similarity=0.5)], 1.0)
    assert "; on a cpu, not a GPU)" in run(["--report", on_cpu.url], monkeypatch, capsys)[1]


def test_a_throughput_of_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speeds = [("baseline (fp32)", 0.0001), ("engine (bf16, 64 lanes)", 0.002), ("engine (bf16, 1024 lanes)", 0.0005)]
    result = {
        "machine": "one GPU",
        "model": "ViT-H-14/none",
        "steps": 200,
        "speeds": [{"name": name, "seconds_per_image_step": seconds} for name, seconds in speeds],
    }
    (tmp_path / "bench.json").write_text(json.dumps(result))
    words = ["--benchmark", tmp_path / "bench.json"]
    status, out, _ = run(words, monkeypatch, capsys)
    assert status == 0
    assert (
        "at 10 images/s per GPU (benchmark of ViT-H-14/none, engine (bf16, 1024 lanes) on one GPU: 200 gradient" in out
    )
    assert "at 20 images/s" in run([*words, "--steps", 100], monkeypatch, capsys)[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no throughput given; measure one with pez caption"),
        (["--report", "{tmp}"], "no _run.json in {tmp}; expected the output of python -m jobs.caption"),
        (["--report", "{tmp}/empty"], "no learned prompts in {tmp}/empty; expected the output of a run"),
        (["--benchmark", "{tmp}/gone.json"], "cannot read {tmp}/gone.json: No such file"),
        (
            ["--benchmark", "{tmp}/other.json"],
            "{tmp}/other.json is not from a speed benchmark; expected a file written by",
        ),
        (["--images-per-second", "9", "--pipeline", "{tmp}/gone.json"], "cannot read {tmp}/gone.json: No such file"),
        (
            ["--images-per-second", "9", "--pipeline", "{tmp}/other.json"],
            "{tmp}/other.json is not from a pipeline benchmark; expected a file written by",
        ),
        (["--images-per-second", "0"], "--images-per-second is 0.0; expected more than 0"),
        (["--images-per-second", "9", "--report", "x"], "--report and --images-per-second are given; expected one"),
        (["--images-per-second", "9", "--steps", "5"], "--steps has no effect without --benchmark"),
    ],
)
def test_without_a_measured_throughput_it_says_so_in_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    PromptTable(str(tmp_path / "empty"), {}).claim()
    (tmp_path / "other.json").write_text('{"curve": []}')
    status, _, err = run([w.format(tmp=tmp_path) for w in words], monkeypatch, capsys)
    [line] = err.splitlines()
    assert status == 2
    assert message.format(tmp=tmp_path) in line
