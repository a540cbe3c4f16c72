"""The runner on Ray, and the only file that imports it: each stage has a pool of actors, which run what its queue gives them.

One task = a unit, or a part of a large one. The driver waits for whichever ends first; `work.py` decides what follows.
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
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.exceptions import ActorDiedError, GetTimeoutError, NodeDiedError, OutOfMemoryError, RayError, RayTaskError
from ray.job_config import JobConfig

from pez.errors import UserError
from pipeline.errors import one_line
from pipeline.folder import OutputFolder
from pipeline.run import actor_errors, warning_log
from pipeline.run.probe import answers, check_address
from pipeline.run.resources import ActorPlan, Resources
from pipeline.run.shared_disk import SharedDisk, shared_disk
from pipeline.run.stage import ActorStartError, OnFailure, Stage, StagePlan
from pipeline.run.tasks import Task, Whole
from pipeline.run.work import Executor, Work, WorkQueue
from pipeline.run.worker_path import worker_path
from pipeline.settings import ClusterSettings, cluster_address
from pipeline.sources.base import Unit

_PATIENCE = 30.0  # seconds without an actor before a note says so


def run_on_ray(
    tasks: Iterable[Task],
    stages: Sequence[StagePlan],
    settings: ClusterSettings,
    on_progress: Callable[[list[Any]], None] = lambda _: None,
    on_note: Callable[[str], None] = lambda _: None,
    on_failure: OnFailure = lambda *_: None,
) -> dict[str, str]:
    """Take units through the stages; a unit enters the next stage when it has left the last.

    Args:
        tasks: of the first stage.
        on_progress: called now and then with what the busy actors of all stages have done of their tasks.
        on_note: called with one line for each failure that is retried, and while nothing can start.
        on_failure: called with each attempt that fails: the task, the reason and the traceback.

    Returns:
        reason by address, of the units that were given up.

    Raises:
        ActorStartError: a model cannot be loaded; nothing was done by the actor that says so.
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
                    pool.dismiss()  # makes room for the actors of later stages
                elif not pool.queue.unfinished and any(queue.starved for queue in queues[:i]):
                    pool.dismiss()  # it took the room of a lost actor
            waiting = {reference: i for i, pool in enumerate(pools) for reference in pool.references()}
            if not waiting:  # each task that is left waits for its next attempt
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
    """An actor as the driver sees it."""

    handle: Any
    starting: Any
    """reference to its start"""
    ready: bool = False
    node: str | None = None
    references: dict[Any, Work] = dataclasses.field(default_factory=dict)
    """to the results of what it has in work"""


class _Pool:
    """The actors of one stage."""

    def __init__(
        self, stage: StagePlan, settings: ClusterSettings, on_note: Callable[[str], None], on_failure: OnFailure
    ) -> None:
        self.stage, self.on_note = stage, on_note
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
        """since the last that went well"""
        self.last_ready = time.monotonic()
        """when an actor was last ready, or a note said that none is"""

    def assign(self) -> None:
        """Send waiting tasks to actors, and start the actors that are missing."""
        for actor, work in self.queue.assign():
            actor.references[actor.handle.run.remote(work.task)] = work
        for _ in range(self.queue.missing()):
            handle = self.stage.start_actor()
            self.queue.join(_Actor(handle=handle, starting=handle.ready.remote()))

    def references(self) -> list[Any]:
        """To starts, and to results of tasks in work."""
        return [r for actor in self.queue.executors for r in (actor.references if actor.ready else [actor.starting])]

    def take(self, reference: Any) -> Unit | None:
        """Take the result of a reference that is ready.

        Returns:
            the unit that has left this stage, if one has.
        """
        actors = self.queue.executors
        actor = next((a for a in actors if reference == a.starting or reference in a.references), None)
        if actor is None:  # it was ended a moment ago
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
        """An actor did not finish what it had in work."""
        ray.kill(actor.handle)  # if it is only out of reach, it would keep its GPU
        if reason := memory_shortage(error):
            self.queue.memory_short(actor, reason)
        elif node_lost(actor.node, error):
            self.queue.node_lost(actor)
            for idle in [a for a in self.queue.executors if a.node == actor.node and not a.works]:
                self._end(idle)  # it would cost another task a loss
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

    def progress(self) -> list[Any]:
        """What the busy actors have done of their tasks, of those that answer."""
        found = []
        for reference in [actor.handle.progress.remote() for actor in self.queue.executors if actor.works]:
            with contextlib.suppress(RayError, GetTimeoutError):
                found.append(ray.get(reference, timeout=0.5))
        return found

    def note_no_actor(self, may_wait: bool) -> None:
        """Note now and then that no actor has started.

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
        for actor in list(self.queue.executors):
            self._end(actor)


@ray.remote
class WorkerActor:
    """Opens any stage in a process of its own and runs its tasks.

    Args:
        disk: the part of the driver's disks that it must see.
    """

    def __init__(self, stage: Stage, device: str, threads: int, disk: SharedDisk) -> None:
        import torch

        torch.set_num_threads(threads)
        warning_log.install()
        self.problem: Exception | None = None
        try:
            disk.check(ray.util.get_node_ip_address())
            self.worker = stage.open(device, threads)
        except (
            Exception
        ) as error:  # for `ready` to raise: of an error in a constructor Ray keeps only the traceback's text
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
    """A stage with the generic actor.

    Args:
        units: those that enter at this stage.
        concurrent_units: tasks that an actor may have at a time.
        disk: what each actor must see.
    """
    # One more thread answers progress() while tasks are in work.
    options = {"num_cpus": plan.cpus, "num_gpus": plan.gpus, "max_concurrency": concurrent_units + 1}
    actor = WorkerActor.options(**options)  # type: ignore[attr-defined]

    def start() -> Any:
        return actor.remote(stage, plan.device, plan.threads, disk)

    return StagePlan(stage.name, start, plan.actors, on_report, units, plan.resources, concurrent_units)


def memory_shortage(error: RayError) -> str | None:
    """What to say when Ray's memory monitor ended the actor; else None."""
    if isinstance(error, OutOfMemoryError) or actor_errors.LOW_ON_MEMORY in str(error):
        return actor_errors.memory_shortage(str(error))
    return None


def start_failure(error: RayError) -> str | None:
    """What an actor's own code raised when it started, if that is why it is not ready."""
    return one_line(error.cause) if isinstance(error, RayTaskError) else actor_errors.raised_at_start(str(error))


def node_lost(node: str | None, error: RayError) -> bool:
    """True where the actor's node is gone, or its raylet does not answer: Ray takes about 15 s to declare it dead."""
    if isinstance(error, NodeDiedError):
        return True
    found = next((n for n in ray.nodes() if n["NodeID"] == node and n["Alive"]), None)
    if found is None:
        return True
    return not answers(found["NodeManagerAddress"], found["NodeManagerPort"])


def connect(settings: ClusterSettings) -> Resources:
    """Join the cluster, or start Ray on this machine.

    Returns:
        what the cluster has now.

    Raises:
        UserError: no Ray answers at the address, or it does not start here.
    """
    if not ray.is_initialized():
        _init(cluster_address(settings))
    have = ray.cluster_resources()
    return Resources(have.get("GPU", 0.0), have.get("CPU", 1.0), fixed=_started_here())


def _init(address: str | None) -> None:
    # Deaths of workers are reported by us, once and with what follows from them.
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # loopback only
        # Ray replaces a loopback address by the machine's own and listens on all of them. Where it takes itself to be
        # unable of clusters (https://github.com/ray-project/ray/issues/18730) it stays on loopback.
        ray_constants.ENABLE_RAY_CLUSTER = False
        options.update(address="local", include_dashboard=False)
    else:
        check_address(address)
        options.update(address=address)
    if RAY_JOB_CONFIG_JSON_ENV_VAR not in os.environ:  # a submitted job has the folder that was submitted
        options.update(job_config=_JobConfig())
    ray_worker._worker_logs_enabled = False  # the only switch that its notices of dead workers know
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except Exception as error:
        expected = (ConnectionError, RayError, RuntimeError, ValueError, AssertionError)
        if not isinstance(error, expected) and type(error) is not Exception:  # its processes do not come up in time
            raise
        if address is not None:
            raise UserError(f"no Ray cluster at {address!r}: {one_line(error)}") from error
        reason = f"Ray does not start on this machine: {one_line(error)}"
        raise UserError(f"{reason}; try again, or run without Ray: --local") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray puts its own in place


def _started_here() -> bool:
    """True for a Ray that this process has started: no other machine can join it."""
    node = ray_worker._global_node
    return node is not None and node.is_head()  # of a Ray that was there before, this process is never the head


class _JobConfig(JobConfig):
    """Has the workers find this very code."""

    def _get_proto_job_config(self) -> Any:
        self._py_driver_sys_path = worker_path()  # in place of the driver's working directory
        return super()._get_proto_job_config()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def seen_by_actors(folder: OutputFolder, units: Sequence[Unit]) -> Iterator[SharedDisk]:
    """What the job's actors must see of this machine's disks, while they work."""
    if _started_here():
        yield SharedDisk()  # they run on this machine
        return
    with shared_disk(folder, units) as disk:
        yield disk
