"""The runner on Ray, and the only file that imports Ray. Each stage has a pool of actors, which run tasks from its queue.

A task is a unit, or a part of a large one. The driver waits for whichever ends first; `work.py` decides what follows.
Images never enter the object store.
"""

import contextlib
import dataclasses
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ray
import ray.util.metrics
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.exceptions import ActorDiedError, GetTimeoutError, NodeDiedError, OutOfMemoryError, RayError, RayTaskError
from ray.job_config import JobConfig

from pez.errors import UserError
from pipeline.errors import one_line
from pipeline.folder import OutputFolder
from pipeline.run import actor_errors, warning_log
from pipeline.run.probe import answers, check_address, check_connected
from pipeline.run.resources import ActorPlan, Resources
from pipeline.run.shared_disk import SharedDisk, shared_disk
from pipeline.run.stage import ActorStartError, OnFailure, Stage, StagePlan
from pipeline.run.tasks import Task, Whole
from pipeline.run.work import Executor, Work, WorkQueue
from pipeline.run.worker_path import worker_path
from pipeline.settings import ClusterSettings, cluster_address
from pipeline.sources.base import Unit

instruments: Any = ray.util.metrics  # Counter, Gauge and Histogram; see pipeline/metrics.py
_PATIENCE = 30.0  # seconds without an actor before a note says so
_IDLE = 60.0  # seconds without a task after which an actor above the minimum ends


def run_on_ray(
    tasks: Iterable[Task],
    stages: Sequence[StagePlan],
    settings: ClusterSettings,
    on_progress: Callable[[list[Any]], None] = lambda _: None,
    on_note: Callable[[str], None] = lambda _: None,
    on_failure: OnFailure = lambda *_: None,
) -> dict[str, str]:
    """Run units through the stages; a unit enters the next stage when it leaves the previous one.

    Args:
        tasks: of the first stage.
        on_progress: called periodically with the progress of the busy actors of all stages.
        on_note: called with one line for each failure that is retried, and when no actor can start.
        on_failure: called for each failed attempt, with the task, the reason and the traceback.

    Returns:
        reasons by URL, for the units that were given up.

    Raises:
        ActorStartError: a model cannot be loaded.
    """
    pools = [_Pool(stage, settings, on_note, on_failure) for stage in stages]
    queues = [pool.queue for pool in pools]
    for queue, stage in zip(queues, stages, strict=True):
        queue.beside = [other for other in queues if other is not queue]
        queue.add(Whole(unit) for unit in stage.units)
    queues[0].add(tasks)
    last_look = time.monotonic()
    try:
        while any(queue.unfinished for queue in queues):
            for i, pool in enumerate(pools):
                pool.assign()
                if not any(queue.unfinished for queue in queues[: i + 1]):
                    pool.dismiss()  # free resources for the actors of later stages
                elif not pool.queue.unfinished and any(queue.starved for queue in queues[:i]):
                    pool.dismiss()  # it took the resources of a lost actor
            waiting = {reference: i for i, pool in enumerate(pools) for reference in pool.references()}
            if not waiting:  # all remaining tasks wait for their next attempt
                time.sleep(0.1)
                continue
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=1.0)
            for reference in ready:
                i = waiting[reference]
                if (unit := pools[i].take(reference)) is not None:
                    for following in queues[i + 1 : i + 2]:
                        following.add([Whole(unit)])
            for i, pool in enumerate(pools):
                pool.expire()
                pool.release()
                pool.note_no_actor(may_wait=any(queue.unfinished for queue in queues[:i]))
            if time.monotonic() - last_look > 2:
                last_look = time.monotonic()
                on_progress([done for pool in pools for done in pool.progress()])
    finally:
        for pool in pools:
            pool.dismiss()
    return {url: reason for queue in queues for url, reason in queue.given_up.items()}


@dataclasses.dataclass(eq=False, kw_only=True)
class _Actor(Executor):
    """The driver's view of an actor."""

    handle: Any
    starting: Any
    """reference to the result of its start"""
    ready: bool = False
    node: str | None = None
    references: dict[Any, Work] = dataclasses.field(default_factory=dict)
    """by reference to the result, the work in progress"""


class _Pool:
    """The actors of one stage."""

    def __init__(
        self, stage: StagePlan, settings: ClusterSettings, on_note: Callable[[str], None], on_failure: OnFailure
    ) -> None:
        self.stage, self.on_note, self.keep = stage, on_note, settings.min_actors
        self.queue = WorkQueue[_Actor](
            stage.name,
            attempts=settings.attempts,
            timeout=settings.shard_timeout,
            limit=stage.actors,
            concurrent=stage.concurrent_units,
            on_note=on_note,
            on_failure=on_failure,
        )
        self.starts_failed = 0
        """since the last successful start"""
        self.last_ready = time.monotonic()
        """when an actor was last ready, or a note said that there is none"""

    def assign(self) -> None:
        """Send waiting tasks to actors, and start missing actors."""
        for actor, work in self.queue.assign():
            actor.references[actor.handle.run.remote(work.task)] = work
        for _ in range(self.queue.missing()):
            handle = self.stage.start_actor()
            self.queue.join(_Actor(handle=handle, starting=handle.ready.remote()))

    def references(self) -> list[Any]:
        """References to starts, and to results of running tasks."""
        return [r for actor in self.queue.executors for r in (actor.references if actor.ready else [actor.starting])]

    def take(self, reference: Any) -> Unit | None:
        """Handle a reference that is ready.

        Returns:
            the unit that has now left this stage, if any.
        """
        actors = self.queue.executors
        actor = next((a for a in actors if reference == a.starting or reference in a.references), None)
        if actor is None:  # it was ended meanwhile
            return None
        if not actor.ready:
            self._take_start(actor)
            return None
        work = actor.references.pop(reference)
        try:
            report = ray.get(reference)
        except RayTaskError as error:
            self.queue.failed(actor, work, error.cause, str(error))
        except RayError as error:
            self._lose(actor, error)
        else:
            self.stage.on_report(report)
            return self.queue.done(actor, work)
        return None

    def _take_start(self, actor: _Actor) -> None:
        try:
            actor.node = ray.get(actor.starting)
        except RayError as error:
            if reason := memory_shortage(error):
                ray.kill(actor.handle)
                self.queue.memory_short(actor, reason)
                return
            self.starts_failed += 1
            raised = start_failure(error)
            if raised is not None or self.starts_failed > 3 * self.stage.actors:
                raise ActorStartError(raised or f"actors do not start: {one_line(error)}") from error
            self._end(actor)
        else:
            self.queue.started(actor)
            self.starts_failed = 0
            self.last_ready = time.monotonic()

    def _lose(self, actor: _Actor, error: RayError) -> None:
        """Handle the loss of an actor."""
        ray.kill(actor.handle)  # if it is only unreachable, it would keep its GPU
        if reason := memory_shortage(error):
            self.queue.memory_short(actor, reason)
        elif node_lost(actor.node, error):
            self.queue.node_lost(actor)
            for idle in [a for a in self.queue.executors if a.node == actor.node and not a.works]:
                self._end(idle)  # another task would be lost with it
        else:
            died = isinstance(error, ActorDiedError)
            self.queue.died(actor, "the actor died" if died else f"the actor was lost ({one_line(error)})")

    def _end(self, actor: _Actor) -> None:
        ray.kill(actor.handle)
        self.queue.executors.remove(actor)

    def expire(self) -> None:
        """End actors whose oldest task has timed out."""
        for actor in self.queue.expire():
            ray.kill(actor.handle)

    def release(self) -> None:
        """End idle actors above the minimum, if there is one."""
        for actor in () if self.keep is None else self.queue.surplus(self.keep, _IDLE):
            self._end(actor)

    def progress(self) -> list[Any]:
        """The progress of the busy actors that answer."""
        found = []
        for reference in [actor.handle.progress.remote() for actor in self.queue.executors if actor.works]:
            with contextlib.suppress(RayError, GetTimeoutError):
                found.append(ray.get(reference, timeout=0.5))
        return found

    def note_no_actor(self, may_wait: bool) -> None:
        """Note periodically that no actor has started.

        Args:
            may_wait: earlier stages may hold all the resources.
        """
        now, actors = time.monotonic(), self.queue.executors
        if may_wait or not actors or any(actor.ready for actor in actors):
            self.last_ready = now
        elif now - self.last_ready > _PATIENCE:
            self.last_ready = now + 9 * _PATIENCE
            have, free = ray.cluster_resources(), ray.available_resources()
            there = " and ".join(f"{have.get(n, 0):g} {n} ({free.get(n, 0):g} free)" for n in ("GPU", "CPU"))
            self.on_note(
                f"{self.stage.name}: waiting for the first actor: each needs {self.stage.resources}, "
                f"the cluster has {there}. Still waiting for resources or for the model to load."
            )

    def dismiss(self) -> None:
        """End all actors."""
        for actor in list(self.queue.executors):
            self._end(actor)


@ray.remote
class WorkerActor:
    """Opens a stage in a process of its own and runs its tasks.

    Args:
        disk: the files of the driver that it must see.
    """

    def __init__(self, stage: Stage, device: str, threads: int, disk: SharedDisk) -> None:
        import torch

        torch.set_num_threads(threads)
        warning_log.install()
        self.problem: Exception | None = None
        try:
            disk.check(ray.util.get_node_ip_address())
            self.worker = stage.open(device, threads)
        except Exception as error:  # for `ready` to raise: Ray keeps only the text of a constructor's error
            self.problem = error

    def ready(self) -> str:
        if self.problem is not None:
            raise self.problem
        return str(ray.get_runtime_context().get_node_id())

    def run(self, task: Task) -> Any:
        return self.worker.run(task)

    def progress(self) -> Any:
        return self.worker.progress


def plan_stage(
    stage: Stage,
    plan: ActorPlan,
    on_report: Callable[[Any], None],
    units: Sequence[Unit] = (),
    concurrent_units: int = 1,
    disk: SharedDisk = SharedDisk(),  # noqa: B008 - frozen
) -> StagePlan:
    """Plan a stage with the generic actor.

    Args:
        units: units that enter at this stage.
        concurrent_units: maximum number of tasks that an actor runs concurrently.
        disk: what each actor must see.
    """
    # One more thread answers progress() while tasks run.
    options = {"num_cpus": plan.cpus, "num_gpus": plan.gpus, "max_concurrency": concurrent_units + 1}
    actor = WorkerActor.options(**options)  # type: ignore[attr-defined]

    def start() -> Any:
        return actor.remote(stage, plan.device, plan.threads, disk)

    return StagePlan(stage.name, start, plan.actors, on_report, units, plan.resources, concurrent_units)


def memory_shortage(error: RayError) -> str | None:
    """A description of the shortage if Ray's memory monitor killed the actor, else None."""
    if isinstance(error, OutOfMemoryError) or actor_errors.LOW_ON_MEMORY in str(error):
        return actor_errors.memory_shortage(str(error))
    return None


def start_failure(error: RayError) -> str | None:
    """The error that an actor's own code raised at its start, if any."""
    return one_line(error.cause) if isinstance(error, RayTaskError) else actor_errors.raised_at_start(str(error))


def node_lost(node: str | None, error: RayError) -> bool:
    """Whether the actor's node is gone, or its raylet does not answer. Ray takes about 15 s to declare a node dead."""
    if isinstance(error, NodeDiedError):
        return True
    found = next((n for n in ray.nodes() if n["NodeID"] == node and n["Alive"]), None)
    if found is None:
        return True
    return not answers(found["NodeManagerAddress"], found["NodeManagerPort"])


def connect(settings: ClusterSettings) -> Resources:
    """Join the cluster, or start Ray on this machine.

    Returns:
        the current resources of the cluster.

    Raises:
        UserError: no Ray answers at the address, Ray does not start here, or this process is connected to another cluster.
    """
    address = cluster_address(settings)
    if not ray.is_initialized():
        _init(address)
    elif address is not None:
        check_connected(address, ray.get_runtime_context().gcs_address)
    have = ray.cluster_resources()
    return Resources(have.get("GPU", 0.0), have.get("CPU", 1.0), fixed=_started_here())


def _init(address: str | None) -> None:
    # This project reports deaths of workers itself, once and with their consequences.
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # loopback only
        # Ray replaces a loopback address by the machine's own and listens on all interfaces. If it believes that it cannot
        # form clusters (https://github.com/ray-project/ray/issues/18730), it stays on loopback.
        ray_constants.ENABLE_RAY_CLUSTER = False
        options.update(address="local", include_dashboard=False)
    else:
        check_address(address)
        options.update(address=address)
    if RAY_JOB_CONFIG_JSON_ENV_VAR not in os.environ:  # a submitted job uses the submitted folder
        options.update(job_config=_JobConfig())
    ray_worker._worker_logs_enabled = False  # the only switch for its notices of dead workers
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except Exception as error:
        expected = (ConnectionError, RayError, RuntimeError, ValueError, AssertionError)
        if not isinstance(error, expected) and type(error) is not Exception:  # its processes do not start in time
            raise
        if address is not None:
            raise UserError(f"no Ray cluster at {address!r}: {one_line(error)}") from error
        reason = f"Ray does not start on this machine: {one_line(error)}"
        raise UserError(f"{reason}; try again, or run without Ray: --local") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray installs its own


def _started_here() -> bool:
    """Whether this process has started Ray; then no other machine can join."""
    node = ray_worker._global_node
    return node is not None and node.is_head()  # this process is never the head of an existing cluster


class _JobConfig(JobConfig):
    """Makes the workers import this code."""

    def _get_proto_job_config(self) -> Any:
        self._py_driver_sys_path = worker_path()  # instead of the driver's working directory
        return super()._get_proto_job_config()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def seen_by_actors(folder: OutputFolder, units: Sequence[Unit]) -> Iterator[SharedDisk]:
    """The files of this machine that the job's actors must see while they work."""
    if _started_here():
        yield SharedDisk()  # the actors run on this machine
        return
    with shared_disk(folder, units) as disk:
        yield disk
