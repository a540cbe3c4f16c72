"""Estimate hours, cost and shard size of a job from a measured throughput.

    python -m jobs.plan --images 10000000 --gpus 64 --report trial           # output of a small run of jobs.caption
    python -m jobs.plan --images 10000000 --gpus 64 --benchmark bench.json   # written by jobs.benchmark --json
    python -m jobs.plan --images 10000000 --gpus 64 --images-per-second 12.5
    python -m jobs.plan ... --pipeline pipeline.json                         # written by jobs.benchmark --pipeline --json

Exit status: 0 = success, 2 = bad usage or no measured throughput.
"""

import dataclasses
import json
import math
from typing import Any

from jobs import command
from jobs.options import refuse_without
from pez.errors import UserError
from pez.settings import LARGE_VOCABULARY, PezSettings, lanes_for
from pipeline.run.estimate import Plan, cores_per_gpu, parts_that_balance, plan_job, shard_size_that_balances
from pipeline.settings import ClusterSettings
from pipeline.terminal import count, duration, open_console, plain, say

_IDLE = 0.02
_LONG = 1800.0  # seconds of work that may be lost with one GPU
_MEASURE = "no throughput given; measure one with pez caption --input ONE.tar --output trial, then use --report trial"


@dataclasses.dataclass(frozen=True)
class PlanJob:
    """Options of `pez plan`."""

    images: int
    """number of images in the job"""
    gpus: int
    report: str | None = None
    """output folder of a run of jobs.caption; its images per second include decoding, swaps and reading"""
    benchmark: str | None = None
    """file of jobs.benchmark --json; gradient steps only, so the job takes longer"""
    images_per_second: float | None = None
    """throughput of one GPU, as you measured it"""
    steps: int | None = None
    """with --benchmark: gradient steps per image; default = those of the benchmark"""
    actors_per_gpu: int = 1
    """with --report: number of actors that shared a GPU"""
    shard_size: int = 10_000
    """images per shard"""
    parts: int = 1
    """--parts of jobs.caption"""
    price_per_gpu_hour: float = 2.5
    """in US dollars"""
    pipeline: str | None = None
    """file of jobs.benchmark --pipeline --json, for the CPU time of an image; default = that of a JPEG of 512x512"""

    def check(self, given: frozenset[str]) -> None:
        """Refuse values that cannot be planned with."""
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                expected = "more than 0" if value <= 0 and least > 0 else f"{least:,.10g} to {most:,.10g}"
                raise UserError(f"{name} is {value}; expected {expected}")
        if self.parts > self.shard_size:
            raise UserError(f"parts is {self.parts}; expected no more than the {self.shard_size} images of a shard")
        refuse_without("report", given, {"actors_per_gpu"}, "without --report")


_RANGES: dict[str, tuple[float, float]] = {
    "images": (1, 1e15),
    "gpus": (1, 1e5),
    "images_per_second": (1e-6, 1e9),
    "steps": (1, 1e9),
    "actors_per_gpu": (1, 1000),
    "shard_size": (1, 1e12),
    "parts": (1, 10_000),
    "price_per_gpu_hour": (0, 1e9),
}
"""allowed range of each option"""


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Images per second of one GPU, and where the figure comes from."""

    images_per_second: float
    source: str


@dataclasses.dataclass(frozen=True)
class CpuTime:
    """CPU seconds that an image takes beside its GPU, and where the figure comes from."""

    seconds: float
    source: str


CPU_SECONDS = CpuTime(0.01, "as measured for JPEG photos of 512x512")
"""see BENCHMARKS.md, "The pipeline at the speed of a GPU\""""


def plan(job: PlanJob) -> int:
    """Print the plan; returns the exit status."""
    found = _throughput(job)
    spent = CPU_SECONDS if job.pipeline is None else _cpu_seconds_of(job.pipeline)
    planned = plan_job(job.images, job.gpus, found.images_per_second, job.shard_size, job.price_per_gpu_hour, job.parts)
    console = open_console()
    for line in _lines(job, found, planned, spent):
        say(console, plain(line))
    return 0


def _lines(job: PlanJob, found: Throughput, planned: Plan, spent: CpuTime) -> list[str]:
    cores = cores_per_gpu(found.images_per_second, spent.seconds)
    tasks = "" if job.parts == 1 else f" in {job.parts} parts"
    lines = [
        f"{count(job.images, 'image')} on {count(job.gpus, 'GPU')} at {found.images_per_second:.4g} images/s per GPU "
        f"({found.source})",
        f"{planned.hours:.2f} hours, {planned.gpu_hours:,.1f} GPU-hours, "
        f"${planned.cost:,.2f} at ${job.price_per_gpu_hour:.2f} per GPU-hour",
        f"{count(planned.shards, 'shard')}{tasks} of {job.shard_size:,} images: {duration(planned.task_seconds)} per task, "
        f"{planned.tasks / job.gpus:.1f} tasks per GPU; GPUs are idle {planned.idle:.1%} of the time, "
        "waiting for the last tasks",
        f"losing a GPU (such as a reclaimed spot instance) costs {duration(planned.lost_seconds)} of work on average, "
        f"{duration(planned.task_seconds)} at most",
        f"each GPU needs {cores:.1f} CPU cores: one for the thread that drives it, and {cores - 1:.2f} to read, decode "
        f"and write ({spent.seconds * 1e3:.1f} ms of CPU time per image, {spent.source})",
    ]
    lanes, at_once = lanes_for("cuda"), ClusterSettings().shards_at_once
    searches = PezSettings().for_vocabulary(LARGE_VOCABULARY).searches
    if (filled := at_once * job.shard_size * searches // job.parts) < lanes and planned.tasks > at_once * job.gpus:
        lines.append(
            f"{at_once} tasks of {job.shard_size / job.parts:,.0f} images, {searches} searches each by default, fill "
            f"{filled:,} of a GPU's {lanes:,} lanes, "
            f"which costs as much time as all: --shards-at-once {math.ceil(lanes * job.parts / job.shard_size / searches) + 1}"
        )
    if planned.idle > _IDLE or planned.task_seconds > _LONG:
        most = _LONG * found.images_per_second
        parts = parts_that_balance(job.images, job.gpus, job.shard_size, most, _IDLE)
        size = shard_size_that_balances(job.images, job.gpus, most, _IDLE)
        better = plan_job(job.images, job.gpus, found.images_per_second, job.shard_size, job.price_per_gpu_hour, parts)
        lines.append(
            f"better: --parts {parts} ({better.hours:.2f} hours, ${better.cost:,.2f}, losing a GPU costs "
            f"{duration(better.lost_seconds)}), or shards of {size:,} images"
        )
    return lines


def _throughput(job: PlanJob) -> Throughput:
    given = {"--report": job.report, "--benchmark": job.benchmark, "--images-per-second": job.images_per_second}
    sources = [name for name, value in given.items() if value is not None]
    if len(sources) > 1:
        raise UserError(f"{' and '.join(sources)} are given; expected one source of throughput")
    if job.steps is not None and job.benchmark is None:
        raise UserError("--steps has no effect without --benchmark; measure other sources with the steps of the job")
    if job.report is not None:
        return _of_reports(job.report, job.actors_per_gpu)
    if job.benchmark is not None:
        return _of_benchmark(job.benchmark, job.steps)
    if job.images_per_second is not None:
        return Throughput(job.images_per_second, "as given")
    raise UserError(_MEASURE)


def _of_reports(url: str, actors_per_gpu: int) -> Throughput:
    from pipeline.description import model_of
    from pipeline.table import PromptTable

    table = PromptTable.written(url)
    reports = [report for report in table.reports(1000) if report.ok]
    if not reports:
        raise UserError(f"no learned prompts in {table.url}; expected the output of a run of jobs.caption")
    ok, seconds = sum(r.ok for r in reports), sum(r.seconds for r in reports)
    method = dataclasses.asdict(PezSettings()) | table.settings["method"]
    steps = f"{method['steps']} steps" if method["steps"] else "default steps"
    about = f"{model_of(table.settings).model}, {method['tokens']} tokens, {steps}"
    source = f"measured: {count(ok, 'image')} in {count(len(reports), 'shard')} of {url}, {about}"
    if (device := table.settings["engine"]["device"]) != "cuda":
        source += f"; on a {device}, not a GPU"
    return Throughput(ok / max(seconds, 1e-9) * actors_per_gpu, source)


def _of_benchmark(path: str, steps: int | None) -> Throughput:
    result = _read(path)
    try:
        engines = [s for s in result["speeds"] if not s["name"].startswith("baseline")]
        best = min(engines, key=lambda speed: speed["seconds_per_image_step"])
        seconds, steps = best["seconds_per_image_step"], steps or result["steps"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not from a speed benchmark; expected a file written by jobs.benchmark --json"
        ) from error
    source = f"benchmark of {result['model']}, {best['name']} on {result['machine']}: {steps} gradient steps only"
    return Throughput(1 / seconds / steps, source)


def _cpu_seconds_of(path: str) -> CpuTime:
    result = _read(path)
    try:
        seconds, size = float(result["cpu_seconds_per_image"]), int(result["image_size"])
        return CpuTime(seconds, f"measured with photos of {size}x{size} on {result['machine']}")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not from a pipeline benchmark; expected a file written by jobs.benchmark --pipeline --json"
        ) from error


def _read(path: str) -> Any:
    try:
        with open(path) as file:
            return json.load(file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError:  # for the caller to say what was expected
        return None


def main(prog: str | None = None) -> None:
    command.run(PlanJob, __doc__, plan, prog)


if __name__ == "__main__":
    main()
