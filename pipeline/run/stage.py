"""The interface of stages. The runner works with any stage and depends on none."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pez.errors import UserError
from pipeline.run.tasks import Task
from pipeline.sources.base import Unit

OnFailure = Callable[[Task, str, str], None]
"""takes the task of a failed attempt, the reason in one line, and the traceback (empty if there is none)"""


class Worker(Protocol):
    """An opened stage; it holds whatever takes long to load, such as a model."""

    @property
    def progress(self) -> Any:
        """Progress of the current units, for display."""

    def run(self, task: Task) -> Any:
        """Run a task: a whole unit, unless the job splits units into parts. Several threads may call it concurrently.

        Returns:
            the report, with the list `warnings`. If an earlier run has finished the unit, its report is returned at no cost.
        """


class Stage(Protocol):
    """A kind of work. It is pickled and sent to workers, so it contains settings and no models."""

    @property
    def name(self) -> str:
        """The name in messages, such as learning."""

    def open(self, device: str, threads: int) -> Worker:
        """Load everything the work needs, in the worker's process.

        Raises:
            UserError: loading fails; the job ends with this line.
        """


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """A stage on a cluster and its actors.

    Args:
        name: of the stage.
        start_actor: starts an actor with the methods `ready() -> node id`, `run(task) -> report` and `progress()`.
        actors: how many; those with resources work while the others wait for theirs.
        on_report: called with the result of `run` for each finished task.
        units: units that enter at this stage, in addition to those finished by the previous stage.
        resources: of each actor, such as 1 GPU and 8 CPU; for the message shown when the cluster lacks them.
        concurrent_units: number of tasks that an actor runs concurrently, each in its own thread.
    """

    name: str
    start_actor: Callable[[], Any]
    actors: int
    on_report: Callable[[Any], None]
    units: Sequence[Unit] = ()
    resources: str = "resources"
    concurrent_units: int = 1


class ActorStartError(UserError):
    """A stage cannot be opened in an actor."""
