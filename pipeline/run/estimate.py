"""Estimated hours and cost of a job from a measured throughput.

The driver gives each idle GPU the next task, a shard or a part of one. All tasks take about the same time, so the job runs in
rounds of as many tasks as there are GPUs, and in the last round some GPUs have nothing to do. The fewer and longer the
tasks, the more time is lost.
"""

import dataclasses
import heapq
import itertools
import math

from pez.errors import UserError


@dataclasses.dataclass(frozen=True)
class Plan:
    """The estimate for a job."""

    shards: int
    tasks: int
    """shards, or parts of them"""
    task_seconds: float
    """of a full task"""
    hours: float
    """from the start of the first task to the end of the last"""
    gpu_hours: float
    """of all GPUs until the end, including idle ones"""
    cost: float
    """in the currency of the price"""
    idle: float
    """share of the GPU-hours that GPUs spend waiting for others to finish"""
    lost_seconds: float
    """of work lost on average when a GPU is lost; at most a whole task"""


def plan_job(
    images: int, gpus: int, images_per_second: float, shard_size: int, price: float = 0.0, parts: int = 1
) -> Plan:
    """Plan a job whose GPUs all have the same throughput.

    Args:
        images_per_second: throughput of one GPU.
        shard_size: images per shard; the last one may have fewer.
        price: of one GPU per hour.
        parts: number of tasks per shard.

    Raises:
        UserError: a number is not more than 0.
    """
    numbers = {
        "images": images,
        "gpus": gpus,
        "images_per_second": images_per_second,
        "shard_size": shard_size,
        "parts": parts,
    }
    for name, value in numbers.items():
        if not value > 0:
            raise UserError(f"{name} is {value}; expected more than 0")
    full, rest = divmod(images, shard_size)
    task_seconds = shard_size / parts / images_per_second
    rounds, more = divmod(full * parts, gpus)
    ends = [rounds * task_seconds] * (gpus - more) + [(rounds + 1) * task_seconds] * more
    for _ in range(parts if rest else 0):  # the last shard's tasks are smaller
        heapq.heapreplace(ends, ends[0] + rest / parts / images_per_second)
    seconds = max(ends)
    gpu_hours = seconds * gpus / 3600
    return Plan(
        shards=full + bool(rest),
        tasks=(full + bool(rest)) * parts,
        task_seconds=task_seconds,
        hours=seconds / 3600,
        gpu_hours=gpu_hours,
        cost=gpu_hours * price,
        idle=max(0.0, 1.0 - images / images_per_second / 3600 / gpu_hours),
        lost_seconds=task_seconds / 2,
    )


def cores_per_gpu(images_per_second: float, cpu_seconds_per_image: float) -> float:
    """CPU cores that keep a GPU busy: one for the thread that drives it, and what reading, decoding and publishing take.

    Args:
        images_per_second: throughput of the GPU.
        cpu_seconds_per_image: all CPU time of an image except for launching kernels; see `pez benchmark --pipeline`.
    """
    return 1.0 + images_per_second * cpu_seconds_per_image


def parts_that_balance(images: int, gpus: int, shard_size: int, limit: float = math.inf, idle: float = 0.02) -> int:
    """The smallest power of two of parts with which GPUs are idle for at most that share of the job.

    Args:
        limit: maximum number of images per task.
    """
    # With n equal tasks per GPU, the last round is at most 1/n of the job.
    enough = min(math.ceil(gpus / idle / max(images // shard_size, 1)), shard_size)
    powers = (1 << power for power in itertools.count() if shard_size / (1 << power) <= max(limit, 1))
    return next(n for n in powers if n >= enough or _idle(images, gpus, shard_size, n) <= idle)


def shard_size_that_balances(images: int, gpus: int, limit: float = math.inf, idle: float = 0.02) -> int:
    """The largest of the sizes 1, 2, 5, 10, 20 and so on, up to `limit`, with which GPUs are idle for at most that share."""
    sizes = [digit * 10**power for power in range(len(str(images))) for digit in (1, 2, 5)]
    return max((size for size in sizes if size <= limit and _idle(images, gpus, size, 1) <= idle), default=1)


def _idle(images: int, gpus: int, shard_size: int, parts: int) -> float:
    return plan_job(images, gpus, 1.0, shard_size, parts=parts).idle
