"""A stage of the job as the scheduler sees it: what is done to each shard by a pool of actors of one kind."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from pez.errors import UserError
from pipeline.sources.shards import Shard

OnFailure = Callable[[Shard, str, str], None]
"""takes the unit of an attempt that failed, the reason in one line, and the traceback, empty where there is none"""


@dataclasses.dataclass(frozen=True)
class Stage:
    """What is done to each shard by a pool of actors of one kind.

    Args:
        name: for notes and reasons.
        start_actor: makes an actor with the methods `ready() -> node id`, `run(shard) -> report` and `progress()`.
        actors: how many; those for which there is room yet work already.
        on_report: called with what `run` returned, for each finished shard and part of one.
        at_once: shards that an actor may have in work, each in a thread of its own.
        asks: what each actor asks of the cluster, like 1 GPU and 8 CPU; told where the cluster does not give it.
    """

    name: str
    start_actor: Callable[[], Any]
    actors: int
    on_report: Callable[[Any], None]
    shards: Sequence[Shard] = ()
    """those that enter at this stage, beside those that the stage before has done"""
    asks: str = "room"
    at_once: int = 1


class ActorStartError(UserError):
    """The model does not load in an actor."""
