"""What is done to each unit, as the scheduler sees it: it runs any stage and knows none."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pez.errors import UserError
from pipeline.sources.base import Unit

OnFailure = Callable[[Unit, str, str], None]
"""takes the unit of an attempt that failed, the reason in one line, and the traceback, empty where there is none"""


class Worker(Protocol):
    """An opened stage: it holds what takes long to load, like a model."""

    @property
    def progress(self) -> Any:
        """Counts of the units in work, for people."""

    def run(self, unit: Unit) -> Any:
        """Do the work on a unit, or a part of one; several threads may call it at once.

        Returns:
            the report, with the list `warnings`. A unit that an earlier run finished gives its report and costs nothing.
        """


class Stage(Protocol):
    """A kind of work. It is pickled to where the work is done, so it holds settings and no models."""

    @property
    def name(self) -> str:
        """For messages, like captions."""

    def open(self, device: str, threads: int) -> Worker:
        """Load what the work needs, in the process that does it.

        Raises:
            UserError: it does not load; the job ends with this line.
        """


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """A stage on a cluster: a pool of actors of one kind.

    Args:
        name: of the stage.
        start_actor: makes an actor with the methods `ready() -> node id`, `run(unit) -> report` and `progress()`.
        actors: how many; those for which there is room work while the others wait for it.
        on_report: called with what `run` returned, for each finished unit and part of one.
        concurrent_units: units that an actor may have in work, each in a thread of its own.
        resources: the resources of each actor, like 1 GPU and 8 CPU; for the message when the cluster does not have them.
    """

    name: str
    start_actor: Callable[[], Any]
    actors: int
    on_report: Callable[[Any], None]
    shards: Sequence[Unit] = ()
    """units that enter at this stage, beside those that the stage before has done"""
    resources: str = "room"
    concurrent_units: int = 1


class ActorStartError(UserError):
    """The stage does not open in an actor."""
