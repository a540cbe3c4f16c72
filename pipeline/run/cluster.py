"""Shards over a Ray cluster: pools of actors, one task = one shard, or a part of a large one.

The driver gives each idle actor the next shard and waits for whichever ends first, see `pool.py`. Images never enter
the object store.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from pipeline.folder import OutputFolder
from pipeline.run import ray_connection
from pipeline.run.actors import actor_starter, pool_of
from pipeline.run.pool import Pool
from pipeline.run.ray_connection import connect
from pipeline.run.resources import ActorPlan, caption_plan, verify_plan
from pipeline.run.shared_disk import SharedDisk, shared_disk
from pipeline.run.stage import ActorStartError, OnFailure, StagePlan
from pipeline.settings import ClusterSettings
from pipeline.sources.base import Unit

__all__ = [
    "ActorPlan",
    "ActorStartError",
    "StagePlan",
    "actor_starter",
    "connect",
    "plan_actors",
    "plan_verifiers",
    "pool_of",
    "run_on_ray",
    "seen_by_actors",
]


def plan_actors(settings: ClusterSettings, device: str | None) -> ActorPlan:
    """How many actors, and what each gets, from what the cluster has."""
    return caption_plan(settings, device, ray_connection.resources())


def plan_verifiers(settings: ClusterSettings, captions: ActorPlan) -> tuple[ActorPlan, ActorPlan]:
    """The plan of the caption actors with room for verifiers, and that of the verifiers."""
    return verify_plan(settings, captions, ray_connection.resources())


@contextlib.contextmanager
def seen_by_actors(folder: OutputFolder, shards: Sequence[Unit]) -> Iterator[SharedDisk]:
    """What the job's actors must see of this machine's disks, while they work."""
    if ray_connection.started_here():
        yield SharedDisk()  # they run on this machine
        return
    with shared_disk(folder, shards) as disk:
        yield disk


def run_on_ray(
    shards: Sequence[Unit],
    stages: Sequence[StagePlan],
    settings: ClusterSettings,
    on_progress: Callable[[list[Any]], None] = lambda _: None,
    on_note: Callable[[str], None] = lambda _: None,
    on_failure: OnFailure = lambda *_: None,
) -> dict[str, str]:
    """Take shards through the stages, each a pool of actors; a shard enters the next stage when it has left the last.

    Args:
        shards: or parts of them; a shard is merged, by an actor, when all its parts are done, and leaves the stage then.
        on_progress: called now and then with what the busy actors of all stages have done of their shards.
        on_note: called with one line for each thing that went wrong and was mended.
        on_failure: called with each attempt that fails: the unit, the reason and the traceback.

    Returns:
        reason by address, of the shards that were given up.

    Raises:
        ActorStartError: a model cannot be loaded; nothing was done by the actor that says so.
    """
    pools = [Pool(stage, settings, on_note, on_failure) for stage in stages]
    for pool in pools:
        pool.beside = [other for other in pools if other is not pool]
    pools[0].add(shards)
    for pool in pools:
        pool.add(pool.stage.shards)
    last_look = time.monotonic()
    try:
        while any(pool.unfinished for pool in pools):
            for i, pool in enumerate(pools):
                pool.assign()
                if not any(p.unfinished for p in pools[: i + 1]):
                    pool.dismiss()  # so that there is room for the actors of the stages after it
                elif not pool.unfinished and any(p.starved for p in pools[:i]):
                    pool.dismiss()  # it took the room of an actor that was lost
            waiting = {reference: i for i, pool in enumerate(pools) for reference in pool.waiting()}
            if not waiting:  # each shard that is left waits for its next try
                time.sleep(0.1)
                continue
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=1.0)
            for reference in ready:
                i = waiting[reference]
                if (ended := pools[i].take(reference)) is not None:
                    for following in pools[i + 1 : i + 2]:
                        following.add([ended])
            for i, pool in enumerate(pools):
                pool.expire()
                pool.tell_of_no_room(may_wait=any(p.unfinished for p in pools[:i]))
            if time.monotonic() - last_look > 2:
                last_look = time.monotonic()
                on_progress([done for pool in pools for done in pool.progress()])
    finally:
        for pool in pools:
            pool.dismiss()
    return {url: reason for pool in pools for url, reason in pool.failed.items()}
