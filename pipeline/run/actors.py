"""The actor of every stage: it opens the stage in its own process and is given units."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from pipeline.run import warning_log
from pipeline.run.resources import ActorPlan
from pipeline.run.shared_disk import SharedDisk
from pipeline.run.stage import Stage, StagePlan
from pipeline.sources.base import Unit


@ray.remote
class WorkerActor:
    """Holds the worker of one stage.

    Args:
        disk: what must be seen of the driver's disks.
    """

    def __init__(self, stage: Stage, device: str, threads: int, disk: SharedDisk) -> None:
        import torch

        torch.set_num_threads(threads)
        warning_log.install()
        self.problem: Exception | None = None
        with self._kept():
            disk.check(ray.util.get_node_ip_address())
            self.worker = stage.open(device, threads)

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """An error is raised by `ready`: of one that a constructor raises, Ray keeps no more than a traceback as text."""
        try:
            yield
        except Exception as error:
            self.problem = error

    def ready(self) -> str:
        if self.problem is not None:
            raise self.problem
        return str(ray.get_runtime_context().get_node_id())

    def run(self, unit: Unit) -> Any:
        return self.worker.run(unit)

    def progress(self) -> Any:
        return self.worker.progress


def actor_starter(
    stage: Stage,
    plan: ActorPlan,
    concurrent_units: int = 1,
    disk: SharedDisk = SharedDisk(),  # noqa: B008 - frozen
) -> Callable[[], Any]:
    """What makes the actors of a stage.

    Args:
        concurrent_units: units that an actor may be given at a time.
        disk: what each must see.
    """
    # One more thread answers progress() while units are in work.
    options = {"num_cpus": plan.cpus, "num_gpus": plan.gpus, "max_concurrency": concurrent_units + 1}
    return lambda: WorkerActor.options(**options).remote(stage, plan.device, plan.threads, disk)  # type: ignore[attr-defined]


def pool_of(
    stage: Stage,
    plan: ActorPlan,
    on_report: Callable[[Any], None],
    units: Sequence[Unit] = (),
    concurrent_units: int = 1,
    disk: SharedDisk = SharedDisk(),  # noqa: B008 - frozen
) -> StagePlan:
    """A stage with its pool of actors.

    Args:
        units: those that enter at this stage.
        concurrent_units, disk: see actor_starter.
    """
    starter = actor_starter(stage, plan, concurrent_units, disk)
    return StagePlan(stage.name, starter, plan.actors, on_report, units, plan.resources, concurrent_units)
