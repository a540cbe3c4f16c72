"""Hours and cost of a job from a measured throughput: arithmetic alone.

The driver gives each idle GPU the next task, a shard or a part of one. All take about the same time, so the job runs in
rounds of as many tasks as there are GPUs, and in the last round some GPUs have nothing to do: the fewer and longer the
tasks, the more is lost.
"""

import dataclasses
import heapq
import itertools
import math

from pez.errors import UserError


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a job takes."""

    shards: int
    tasks: int
    """shards, or parts of them"""
    task_seconds: float
    """of a full one"""
    hours: float
    """from the first task's start to the last one's end"""
    gpu_hours: float
    """of all GPUs until the end, idle ones included"""
    cost: float
    """in the currency of the price"""
    idle: float
    """share of the GPU-hours in which a GPU waits for others to end"""
    lost_seconds: float
    """of work, on average, where one GPU goes; at most a whole task"""


def plan_job(
    images: int, gpus: int, images_per_second: float, shard_size: int, price: float = 0.0, parts: int = 1
) -> Plan:
    """Plan a job whose GPUs all work at the same pace.

    Args:
        images_per_second: of one GPU.
        shard_size: images in a shard; the last one may have fewer.
        price: of one GPU for one hour.
        parts: tasks that each shard is cut into.

    Raises:
        UserError: a number that is not more than 0.
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


def parts_that_balance(images: int, gpus: int, shard_size: int, limit: float = math.inf, idle: float = 0.02) -> int:
    """The fewest parts of 1, 2, 4 and so on with which GPUs are idle for at most that share of the job.

    Args:
        limit: images in a task.
    """
    # With n equal tasks a GPU the last round is at most 1/n of the job.
    enough = min(math.ceil(gpus / idle / max(images // shard_size, 1)), shard_size)
    powers = (1 << power for power in itertools.count() if shard_size / (1 << power) <= max(limit, 1))
    return next(n for n in powers if n >= enough or _idle(images, gpus, shard_size, n) <= idle)


def shard_size_that_balances(images: int, gpus: int, limit: float = math.inf, idle: float = 0.02) -> int:
    """The largest of the sizes 1, 2, 5, 10, 20 and so on, up to `limit`, with which GPUs are idle for at most that share."""
    sizes = [digit * 10**power for power in range(len(str(images))) for digit in (1, 2, 5)]
    return max((size for size in sizes if size <= limit and _idle(images, gpus, size, 1) <= idle), default=1)


def _idle(images: int, gpus: int, shard_size: int, parts: int) -> float:
    return plan_job(images, gpus, 1.0, shard_size, parts=parts).idle
