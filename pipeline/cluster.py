"""Shards over a Ray cluster: a pool of actors, one task = one shard, or a part of a large one. The only file that imports Ray.

The driver gives each idle actor the next shard and waits for whichever ends first. A shard comes back into the queue when
its actor dies, its node is lost or its time is up; an actor that is lost is replaced. What a shard may cost is bounded:
`attempts` of its own, and more of those for which a lost node is to blame. Images never enter the object store.
"""

import dataclasses
import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

import pez
from pipeline.caption import Captioner, Progress, caption_shard, retry_delay
from pipeline.parts import PartReport, PartsLeft
from pipeline.settings import CaptionSettings, ClusterSettings, VerifySettings
from pipeline.shards import InputError, Shard
from pipeline.table import PromptTable, ShardReport
from pipeline.verified_table import VerifiedTable, VerifyReport
from pipeline.verify import Verifier, VerifyProgress, verify_shard

_PATIENCE = 30.0  # seconds without any actor before it is told


@dataclasses.dataclass(frozen=True)
class ActorPlan:
    """Resources and threads of each actor."""

    actors: int
    gpus: float
    cpus: float
    threads: int
    device: str

    @property
    def asks(self) -> str:
        return f"{self.gpus:g} GPU and {self.cpus:g} CPU"


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


class ActorStartError(InputError):
    """The model does not load in an actor."""


def connect(settings: ClusterSettings) -> None:
    """Join the cluster, or start Ray on this machine."""
    if ray.is_initialized():
        return
    address = settings.address or os.environ.get("RAY_ADDRESS")
    # Death notices of workers are reported by us, once and with what follows from them.
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # loopback only
        # Ray turns a loopback address that it is given into the machine's own and listens on all of them. Where it takes
        # itself to be unable of clusters (https://github.com/ray-project/ray/issues/18730) it stays on loopback.
        ray_constants.ENABLE_RAY_CLUSTER = False
        options.update(address="local", include_dashboard=False)
    else:
        options.update(address=address)
    ray_worker._worker_logs_enabled = False  # the only switch that its notices of dead workers know
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except (ConnectionError, RayError) as error:
        raise InputError(f"no Ray cluster at {address!r}: {' '.join(str(error).split())[:200]}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray puts its own in place


def plan_actors(settings: ClusterSettings, device: str | None) -> ActorPlan:
    """How many actors, and what each gets, from what the cluster has."""
    have = ray.cluster_resources()
    gpus, cpus = have.get("GPU", 0.0), have.get("CPU", 1.0)
    wants_gpu = settings.gpus_per_actor != 0 and device != "cpu" and (gpus > 0 or device == "cuda")
    per_actor = (settings.gpus_per_actor or 1.0) if wants_gpu else 0.0
    actors = settings.actors or max(1, int(gpus / per_actor) if wants_gpu else int(cpus // 4))
    share = settings.cpus_per_actor or (max(cpus / actors, 0.01) if cpus < actors else float(int(cpus // actors)))
    if wants_gpu:
        share = settings.cpus_per_actor or min(share, 8.0)
    return ActorPlan(actors, per_actor, share, max(1, int(share)), "cuda" if wants_gpu else "cpu")


def plan_verifiers(settings: ClusterSettings, captions: ActorPlan) -> tuple[ActorPlan, ActorPlan]:
    """The plan of the caption actors, with room for verifiers where GPUs are left, and that of the verifiers.

    Verifiers are planned for the whole cluster: those for which the caption actors leave no room start after them.
    """
    have = ray.cluster_resources()
    gpus, cpus = have.get("GPU", 0.0), have.get("CPU", 1.0)
    per_verifier = captions.gpus if settings.gpus_per_verifier is None else settings.gpus_per_verifier
    if captions.device == "cpu" or not per_verifier:
        count = settings.verify_actors or max(1, int(cpus // 4))
        left = cpus - captions.actors * captions.cpus
        share = (left if left > 0 else cpus) / count
        threads = max(1, int(share))
        return captions, ActorPlan(count, 0.0, float(threads) if share >= 1 else max(share, 0.01), threads, "cpu")
    count = settings.verify_actors or max(1, int(gpus / per_verifier))
    beside = max(0, min(count, int((gpus - captions.actors * captions.gpus) / per_verifier)))
    if settings.cpus_per_actor is None:
        share = max((cpus - beside) / captions.actors, 0.01)
        share = min(captions.cpus, float(int(share)) if share >= 1 else share)
        captions = dataclasses.replace(captions, cpus=share, threads=max(1, int(share)))
    return captions, ActorPlan(count, per_verifier, min(1.0, cpus / count), 2, captions.device)


@ray.remote
class CaptionActor:
    """Holds one model and captions shards, several at a time."""

    def __init__(
        self,
        settings: CaptionSettings,
        method: pez.PezSettings,
        plan: ActorPlan,
        url: str,
        described: dict[str, Any],
        retry_failed: bool = False,
    ) -> None:
        import torch

        torch.set_num_threads(plan.threads)
        self.captioner = Captioner(settings, method, plan.device, plan.threads, shared=True)
        self.table = PromptTable(url, described)
        self.retry_failed = retry_failed

    def ready(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def run(self, shard: Shard) -> ShardReport | PartReport:
        return caption_shard(shard, self.captioner, self.table, self.retry_failed)

    def progress(self) -> Progress:
        return self.captioner.progress


@ray.remote
class VerifyActor:
    """Holds one generator and the CLIP that compares, and verifies shards, one at a time."""

    def __init__(
        self, settings: VerifySettings, plan: ActorPlan, table: tuple[str, dict[str, Any], dict[str, Any]]
    ) -> None:
        import torch

        torch.set_num_threads(plan.threads)
        url, captioned, verified = table
        self.verifier = Verifier(settings, captioned["model"], plan.device, plan.threads)
        self.table = VerifiedTable(PromptTable(url, captioned), verified, settings.keep_images)

    def ready(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def run(self, shard: Shard) -> VerifyReport:
        return verify_shard(shard, self.verifier, self.table)

    def progress(self) -> VerifyProgress:
        return self.verifier.progress


def run_on_ray(
    shards: Sequence[Shard],
    stages: Sequence[Stage],
    settings: ClusterSettings,
    on_progress: Callable[[list[Any]], None] = lambda _: None,
    on_note: Callable[[str], None] = lambda _: None,
) -> dict[str, str]:
    """Take shards through the stages, each a pool of actors; a shard enters the next stage when it has left the last.

    Args:
        shards: or parts of them; a shard is merged, by an actor, when all its parts are done, and leaves the stage then.
        on_progress: called now and then with what the busy actors of all stages have done of their shards.
        on_note: called with one line for each thing that went wrong and was mended.

    Returns:
        reason by address, of the shards that were given up.

    Raises:
        ActorStartError: a model cannot be loaded; nothing was done by the actor that says so.
    """
    pools = [_Pool(stage, settings, on_note) for stage in stages]
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


@dataclasses.dataclass
class _Work:
    shard: Shard
    attempts: int = 0
    losses: int = 0
    """attempts for which a lost node is to blame"""
    not_before: float = 0.0
    """time of the next attempt"""
    alone: bool = False
    """it was in work with others when their actor died; the next time tells whether it is to blame"""


@dataclasses.dataclass
class _Member:
    """One actor and what it does."""

    actor: Any
    starting: Any
    """reference to its start, None once it is up"""
    tasks: dict[Any, _Work] = dataclasses.field(default_factory=dict)
    """by the reference to the result, the oldest first"""
    deadline: float = float("inf")
    """of the oldest"""
    node: str | None = None

    @property
    def works(self) -> list[_Work]:
        return list(self.tasks.values())


class _Pool:
    """The actors of one stage and the shards that wait for them."""

    def __init__(self, stage: Stage, settings: ClusterSettings, on_note: Callable[[str], None]) -> None:
        self.stage, self.settings, self.on_note = stage, settings, on_note
        self.queue: deque[_Work] = deque()
        self.parts = PartsLeft()
        self.members: list[_Member] = []
        self.failed: dict[str, str] = {}
        self.starts_failed = 0
        """since the last that went well"""
        self.last_start = time.monotonic()
        """when an actor was last up, or this was told"""

    @property
    def unfinished(self) -> bool:
        return bool(self.queue) or any(member.tasks for member in self.members)

    @property
    def starved(self) -> bool:
        """Shards wait and no actor is up, for want of room perhaps."""
        return bool(self.queue) and all(member.starting for member in self.members)

    def add(self, shards: Sequence[Shard]) -> None:
        self.queue.extend(_Work(shard) for shard in shards)

    def assign(self) -> None:
        """Give waiting shards to actors that have room, and start actors while there are fewer than shards to do."""
        for busy in range(self._most_at_once()):
            for member in self.members:
                if member.starting is None and len(member.tasks) == busy and not any(w.alone for w in member.works):
                    self._give(member, self._next(alone=not busy))
        idle = sum(not member.tasks for member in self.members)
        for _ in range(min(self.stage.actors - len(self.members), len(self.queue) - idle)):
            self.members.append(self._start())

    def _most_at_once(self) -> int:
        """How many shards an actor may have now: near the end fewer, so that all actors end together."""
        if self.stage.actors == 1:
            return self.stage.at_once
        left = len(self.queue) + sum(len(member.tasks) for member in self.members)
        return max(1, min(self.stage.at_once, left // (2 * self.stage.actors)))

    def _give(self, member: _Member, work: _Work | None) -> None:
        if work is None:
            return
        if not member.tasks:
            member.deadline = time.monotonic() + self.settings.shard_timeout
        member.tasks[member.actor.run.remote(work.shard)] = work

    def waiting(self) -> list[Any]:
        """References to the starts and shards in work."""
        return [reference for m in self.members for reference in ([m.starting] if m.starting else m.tasks)]

    def take(self, reference: Any) -> Shard | None:
        """Take in what a reference that is ready says.

        Returns:
            the shard that has left this stage, if one has.
        """
        member = next((m for m in self.members if reference == m.starting or reference in m.tasks), None)
        if member is None:  # its actor has just been replaced
            return None
        if member.starting is not None:
            self._started(member)
            return None
        if reference == next(iter(member.tasks)):
            member.deadline = time.monotonic() + self.settings.shard_timeout  # of the next
        works = member.works
        work = member.tasks.pop(reference)
        try:
            self.stage.on_report(ray.get(reference))
            return self._left(work.shard)
        except RayTaskError as error:
            work.not_before = time.monotonic() + retry_delay(work.attempts + 1)
            self._give_back(work, _one_line(error.cause), node_lost=False)
        except RayActorError:
            lost = _node_lost(member.node)
            if lost or len(works) == 1:
                for one in works:
                    self._give_back(one, "its node was lost" if lost else "its actor died", lost)
            else:
                self._give_back_unjudged(works)
            self._replace(member)
            if lost:  # the idle ones there would cost other shards a try each
                for other in [m for m in self.members if m.node == member.node and not m.tasks]:
                    self._replace(other)
        return None

    def _next(self, alone: bool) -> _Work | None:
        """A shard whose time has come; one that must be alone only for an actor that has nothing."""
        now = time.monotonic()
        work = next((w for w in self.queue if w.not_before <= now and (alone or not w.alone)), None)
        if work is not None:
            self.queue.remove(work)
        return work

    def expire(self) -> None:
        """Replace actors whose oldest shard has had its time; what they have beside it goes to others."""
        now = time.monotonic()
        for member in [m for m in self.members if m.tasks and now > m.deadline]:
            oldest, *others = member.works
            self._give_back(oldest, f"not done after {self.settings.shard_timeout:g} s", node_lost=False)
            self.queue.extendleft(reversed(others))
            self._replace(member)

    def progress(self) -> list[Any]:
        """What the busy actors have done of their shards, of those that answer."""
        found = []
        for reference in [m.actor.progress.remote() for m in self.members if m.tasks]:
            try:
                found.append(ray.get(reference, timeout=0.5))
            except (RayError, GetTimeoutError):
                continue
        return found

    def tell_of_no_room(self, may_wait: bool) -> None:
        """Say so where no actor comes up, now and then.

        Args:
            may_wait: the stages before this one may have all the room.
        """
        now = time.monotonic()
        if may_wait or not self.members or any(m.starting is None for m in self.members):
            self.last_start = now
        elif now - self.last_start > _PATIENCE:
            self.last_start = now + 9 * _PATIENCE
            have, free = ray.cluster_resources(), ray.available_resources()
            told = " and ".join(f"{have.get(n, 0):g} {n} ({free.get(n, 0):g} free)" for n in ("GPU", "CPU"))
            self.on_note(
                f"{self.stage.name}: no actor is up yet; each asks for {self.stage.asks}, and the cluster has {told}; "
                "it goes on waiting, for room or for a model that loads"
            )

    def dismiss(self) -> None:
        for member in self.members:
            ray.kill(member.actor)
        self.members = []

    def _started(self, member: _Member) -> None:
        try:
            member.node = ray.get(member.starting)
            member.starting = None
            self.starts_failed, self.last_start = 0, time.monotonic()
        except RayActorError as error:
            self.starts_failed += 1
            cause = _cause(error)
            if cause is not None or self.starts_failed > 3 * self.stage.actors:
                raise ActorStartError(cause or f"actors do not start: {_one_line(error)}") from error
            self._replace(member)

    def _left(self, shard: Shard) -> Shard | None:
        """The shard that has left this stage by this; the last part of one has it merged first."""
        if shard.part is None:
            return dataclasses.replace(shard, parts=1)
        if whole := self.parts.whole_after(shard):
            self.queue.appendleft(_Work(whole))
        return None

    def _give_back(self, work: _Work, reason: str, node_lost: bool) -> None:
        work.attempts += not node_lost
        work.losses += node_lost
        if work.attempts < self.settings.attempts and work.losses < 4 * self.settings.attempts:
            self.queue.append(work)
            self.on_note(f"{work.shard.stem}{work.shard.which}: {self.stage.name}: {reason}; it is tried again")
        else:
            tries = work.attempts + work.losses
            self.failed[work.shard.url] = f"{self.stage.name}{work.shard.which}: {reason} ({tries} tries)"

    def _give_back_unjudged(self, works: list[_Work]) -> None:
        """Shards of which one may have killed their actor: each is tried again with no other beside it."""
        for work in works:
            work.alone = True
        self.queue.extend(works)
        names = ", ".join(f"{work.shard.stem}{work.shard.which}" for work in works)
        self.on_note(f"{names}: {self.stage.name}: their actor died; they are tried again, one at a time")

    def _start(self) -> _Member:
        actor = self.stage.start_actor()
        return _Member(actor, actor.ready.remote())

    def _replace(self, member: _Member) -> None:
        ray.kill(member.actor)  # one that is only out of reach would keep its GPU
        self.members[self.members.index(member)] = self._start()


def actor_starter(
    settings: CaptionSettings,
    method: pez.PezSettings,
    plan: ActorPlan,
    url: str,
    described: dict[str, Any],
    retry_failed: bool = False,
    at_once: int = 1,
) -> Callable[[], Any]:
    """What makes the job's actors.

    Args:
        at_once: shards that an actor may be given at a time.
    """
    # One more thread answers progress() while shards are in work.
    options = {"num_cpus": plan.cpus, "num_gpus": plan.gpus, "max_concurrency": at_once + 1}
    told = (settings, method, plan, url, described, retry_failed)
    return lambda: CaptionActor.options(**options).remote(*told)  # type: ignore[attr-defined]


def verify_stage(
    settings: VerifySettings,
    plan: ActorPlan,
    table: VerifiedTable,
    shards: Sequence[Shard],
    on_report: Callable[[VerifyReport], None],
) -> Stage:
    """The stage of verification.

    Args:
        shards: that were captioned by an earlier run.
    """
    options = {"num_cpus": plan.cpus, "num_gpus": plan.gpus, "max_concurrency": 2}
    told = (table.prompts.url, table.prompts.settings, table.settings)
    return Stage(
        "verification",
        lambda: VerifyActor.options(**options).remote(settings, plan, told),  # type: ignore[attr-defined]
        plan.actors,
        on_report,
        shards,
        plan.asks,
    )


def _node_lost(node: str | None) -> bool:
    """True where the actor's node is gone, or its raylet does not answer: Ray takes some 15 s to tell that it is dead."""
    found = next((n for n in ray.nodes() if n["NodeID"] == node and n["Alive"]), None)
    if found is None:
        return True
    try:
        socket.create_connection((found["NodeManagerAddress"], found["NodeManagerPort"]), timeout=2).close()
    except OSError:
        return True
    return False


def _cause(error: RayActorError) -> str | None:
    """The exception that an actor's constructor raised, if that is why it died."""
    cause = getattr(error, "cause", None) or error.__cause__
    if cause is None and "creation task" in str(error):
        lines = [line for line in str(error).splitlines() if line.strip()]
        return lines[-1].strip()
    return _one_line(cause) if cause is not None else None


def _one_line(error: BaseException | None) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
