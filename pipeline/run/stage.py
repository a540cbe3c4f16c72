"""What is done to each unit, as the scheduler sees it: it runs any stage and knows none."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pez.errors import UserError
from pipeline.run.tasks import Task
from pipeline.sources.base import Unit

OnFailure = Callable[[Task, str, str], None]
"""takes the task of an attempt that failed, the reason in one line, and the traceback, empty where there is none"""


class Worker(Protocol):
    """An opened stage: it holds what takes long to load, like a model."""

    @property
    def progress(self) -> Any:
        """Counts of the units in work, for people."""

    def run(self, task: Task) -> Any:
        """Do a task, which is a whole unit unless the job cuts units into parts; several threads may call it at once.

        Returns:
            the report, with the list `warnings`. A unit that an earlier run finished gives its report and costs nothing.
        """


class Stage(Protocol):
    """A kind of work. It is pickled to where the work is done, so it holds settings and no models."""

    @property
    def name(self) -> str:
        """For messages, like learning."""

    def open(self, device: str, threads: int) -> Worker:
        """Load what the work needs, in the process that does it.

        Raises:
            UserError: it does not load; the job ends with this line.
        """


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """A stage on a cluster, with actors of one kind.

    Args:
        name: of the stage.
        start_actor: makes an actor with the methods `ready() -> node id`, `run(task) -> report` and `progress()`.
        actors: how many; those for which there are resources work while the others wait for theirs.
        on_report: called with what `run` returned, for each task that is done.
        units: those that enter at this stage, beside those that the stage before has done.
        resources: of each actor, like 1 GPU and 8 CPU; for the message when the cluster does not have them.
        concurrent_units: tasks that an actor may have in work, each in a thread of its own.
    """

    name: str
    start_actor: Callable[[], Any]
    actors: int
    on_report: Callable[[Any], None]
    units: Sequence[Unit] = ()
    resources: str = "resources"
    concurrent_units: int = 1


class ActorStartError(UserError):
    """The stage does not open in an actor."""
