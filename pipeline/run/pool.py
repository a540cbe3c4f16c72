"""The actors of one stage and the shards that wait for them: who gets what, and what follows where something dies.

A shard comes back into the queue when its actor dies, its node is lost or its time is up; an actor that is lost is replaced.
What a shard may cost is bounded: `attempts` of its own, more of those for which a lost node is to blame, and where memory runs
short as many as there are while anything else is done.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from pipeline.run.parts_left import PartsLeft
from pipeline.run.ray_errors import memory_shortage, node_lost, not_done, one_line, start_failure
from pipeline.run.serial import retry_delay
from pipeline.run.stage import ActorStartError, OnFailure, StagePlan
from pipeline.settings import ClusterSettings
from pipeline.sources.base import Unit

_PATIENCE = 30.0  # seconds without any actor before it is told
_LESS_MEMORY = "fewer --actors or smaller --lanes need less memory"


@dataclasses.dataclass
class Work:
    shard: Unit
    attempts: int = 0
    losses: int = 0
    """attempts for which a lost node is to blame"""
    not_before: float = 0.0
    """time of the next attempt"""
    alone: bool = False
    """it was in work with others when their actor died; the next time tells whether it is to blame"""
    ended_by_memory: bool = False
    """once at least: memory was short while it was in work"""


@dataclasses.dataclass
class Member:
    """One actor and what it does."""

    actor: Any
    starting: Any
    """reference to its start, None once it is up"""
    tasks: dict[Any, Work] = dataclasses.field(default_factory=dict)
    """by the reference to the result, the oldest first"""
    deadline: float = float("inf")
    """of the oldest"""
    node: str | None = None
    shortage: int = 0
    """how many times memory had run short when it was started"""

    @property
    def works(self) -> list[Work]:
        return list(self.tasks.values())


class Pool:
    """The actors of one stage and the shards that wait for them."""

    def __init__(
        self,
        stage: StagePlan,
        settings: ClusterSettings,
        on_note: Callable[[str], None],
        on_failure: OnFailure = lambda *_: None,
    ) -> None:
        self.stage, self.settings, self.on_note, self.on_failure = stage, settings, on_note, on_failure
        self.queue: deque[Work] = deque()
        self.parts = PartsLeft()
        self.members: list[Member] = []
        self.failed: dict[str, str] = {}
        self.starts_failed = 0
        """since the last that went well"""
        self.shortages = 0
        """times that memory ran short"""
        self.shortages_in_a_row = 0
        """since a shard was done"""
        self.shortages_in_vain = 0
        """those of them that ended the only work"""
        self.starts_in_vain = 0
        """starts that memory ended while no actor was up, since one went well"""
        self.not_before = 0.0
        """time of the next start of an actor"""
        self.beside: list[Pool] = []
        """the pools of the other stages"""
        self.last_start = time.monotonic()
        """when an actor was last up, or this was told"""

    @property
    def unfinished(self) -> bool:
        return bool(self.queue) or any(member.tasks for member in self.members)

    @property
    def at_work(self) -> bool:
        return any(member.tasks for member in self.members)

    @property
    def starved(self) -> bool:
        """Shards wait and no actor is up, for want of room perhaps."""
        return bool(self.queue) and all(member.starting for member in self.members)

    def add(self, shards: Sequence[Unit]) -> None:
        self.queue.extend(Work(shard) for shard in shards)

    def assign(self) -> None:
        """Give waiting shards to actors that have room, and start actors while there are fewer than shards to do."""
        for busy in range(self._most_at_once()):
            for member in self.members:
                if member.starting is None and len(member.tasks) == busy and not any(w.alone for w in member.works):
                    self._give(member, self._next(alone=not busy))
        if time.monotonic() < self.not_before:
            return
        idle = sum(not member.tasks for member in self.members)
        for _ in range(min(self.stage.actors - len(self.members), len(self.queue) - idle)):
            self.members.append(self._start())

    def _most_at_once(self) -> int:
        """How many shards an actor may have now: near the end fewer, so that all actors end together."""
        if self.stage.actors == 1:
            return self.stage.concurrent_units
        left = len(self.queue) + sum(len(member.tasks) for member in self.members)
        return max(1, min(self.stage.concurrent_units, left // (2 * self.stage.actors)))

    def _give(self, member: Member, work: Work | None) -> None:
        if work is None:
            return
        if not member.tasks:
            member.deadline = time.monotonic() + self.settings.shard_timeout
        member.tasks[member.actor.run.remote(work.shard)] = work

    def waiting(self) -> list[Any]:
        """References to the starts and shards in work."""
        return [reference for m in self.members for reference in ([m.starting] if m.starting else m.tasks)]

    def take(self, reference: Any) -> Unit | None:
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
            report = ray.get(reference)
        except RayTaskError as error:
            self._record([work], one_line(error.cause), str(error))
            if getattr(error.cause, "permanent", False):
                self._give_up(work, one_line(error.cause))
            else:
                work.not_before = time.monotonic() + retry_delay(work.attempts + 1)
                self._give_back(work, one_line(error.cause), node_lost=False)
        except RayError as error:
            self._lost(member, works, error)
        else:
            self.shortages_in_a_row = self.shortages_in_vain = 0
            self.stage.on_report(report)
            return self._left(work.shard)
        return None

    def _lost(self, member: Member, works: list[Work], error: RayError) -> None:
        """What an actor had in work did not come to its end: the shards go back, and another actor is started."""
        if reason := memory_shortage(error):
            self._short_of_memory(member, works, reason)
            return
        lost = node_lost(member.node, error)
        self._record(works, "its node was lost" if lost else not_done(error))
        if lost or len(works) == 1:
            for one in works:
                self._give_back(one, "its node was lost" if lost else not_done(error), lost)
        else:
            self._give_back_unjudged(works, not_done(error).replace("its", "their", 1))
        self._replace(member)
        if lost:  # the idle ones there would cost other shards a try each
            for other in [m for m in self.members if m.node == member.node and not m.tasks]:
                self._replace(other)

    def _short_of_memory(self, member: Member, works: list[Work], reason: str) -> None:
        """Ray ended an actor because its node had too little memory left, for which the shards cannot be blamed.

        They are tried again, and without a limit while anything is done beside; the next actor waits a little. Where
        nothing is done at all, no more than some tries follow one another.
        """
        ray.kill(member.actor)
        self.members.remove(member)
        self._record(works, reason)
        anew = member.shortage == self.shortages  # not one of several that one shortage has ended
        self.shortages += anew
        self.shortages_in_a_row += anew
        wait = retry_delay(self.shortages_in_a_row)
        self.not_before = time.monotonic() + wait
        for work in works:
            work.alone = work.ended_by_memory = True
            work.not_before = self.not_before
        self.queue.extend(works)
        limit = max(self.settings.attempts, 3)
        busy = any(pool.at_work for pool in (self, *self.beside))
        if works:
            self.shortages_in_vain += anew and not busy
            ended = self.shortages_in_vain >= limit or self.shortages_in_a_row >= 10 * limit
        else:
            self.starts_in_vain += anew and not busy and all(m.starting is not None for m in self.members)
            ended = self.starts_in_vain >= limit
        if ended:
            self.shortages_in_a_row = self.shortages_in_vain = self.starts_in_vain = 0
            given_up = [work for work in self.queue if work.ended_by_memory or not works]
            for work in given_up:
                self.queue.remove(work)
                self._give_up(work, reason, tries=limit)
            self.on_note(f"{self.stage.name}: {reason}; {_LESS_MEMORY}")
        elif works:
            self.on_note(f"{_names(works)}: {self.stage.name}: {reason}; tried again in {wait:g} s; {_LESS_MEMORY}")
        elif anew:
            self.on_note(f"{self.stage.name}: {reason}; an actor is started again in {wait:g} s; {_LESS_MEMORY}")

    def _next(self, alone: bool) -> Work | None:
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
            self._record([oldest], f"not done after {self.settings.shard_timeout:g} s")
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
            message = " and ".join(f"{have.get(n, 0):g} {n} ({free.get(n, 0):g} free)" for n in ("GPU", "CPU"))
            self.on_note(
                f"{self.stage.name}: waiting for the first actor: each needs {self.stage.resources}, "
                f"the cluster has {message}. "
                "Still waiting for resources or for the model to load."
            )

    def dismiss(self) -> None:
        for member in self.members:
            ray.kill(member.actor)
        self.members = []

    def _started(self, member: Member) -> None:
        try:
            member.node = ray.get(member.starting)
            member.starting = None
            self.starts_failed = self.starts_in_vain = 0
            self.last_start = time.monotonic()
        except RayError as error:
            if reason := memory_shortage(error):
                self._short_of_memory(member, [], reason)
                return
            self.starts_failed += 1
            raised = start_failure(error)
            if raised is not None or self.starts_failed > 3 * self.stage.actors:
                raise ActorStartError(raised or f"actors do not start: {one_line(error)}") from error
            self._replace(member)

    def _left(self, shard: Unit) -> Unit | None:
        """The shard that has left this stage by this; the last part of one has it merged first."""
        if shard.part is None:
            return dataclasses.replace(shard, parts=1)
        if whole := self.parts.whole_after(shard):
            self.queue.appendleft(Work(whole))
        return None

    def _give_back(self, work: Work, reason: str, node_lost: bool) -> None:
        work.attempts += not node_lost
        work.losses += node_lost
        if work.attempts < self.settings.attempts and work.losses < 4 * self.settings.attempts:
            self.queue.append(work)
            self.on_note(f"{work.shard.stem}{work.shard.which}: {self.stage.name}: {reason}; it is tried again")
        else:
            self._give_up(work, reason, work.attempts + work.losses)

    def _record(self, works: Sequence[Work], reason: str, trace: str = "") -> None:
        for work in works:
            self.on_failure(work.shard, f"{self.stage.name}: {reason}", trace)

    def _give_up(self, work: Work, reason: str, tries: int = 0) -> None:
        message = f" ({tries} {'try' if tries == 1 else 'tries'})" if tries else ""
        self.failed[work.shard.url] = f"{self.stage.name}{work.shard.which}: {reason}{message}"

    def _give_back_unjudged(self, works: list[Work], reason: str) -> None:
        """Shards of which one may have killed their actor: each is tried again with no other beside it."""
        for work in works:
            work.alone = True
        self.queue.extend(works)
        self.on_note(f"{_names(works)}: {self.stage.name}: {reason}; they are tried again, one at a time")

    def _start(self) -> Member:
        actor = self.stage.start_actor()
        return Member(actor, actor.ready.remote(), shortage=self.shortages)

    def _replace(self, member: Member) -> None:
        ray.kill(member.actor)  # one that is only out of reach would keep its GPU
        self.members[self.members.index(member)] = self._start()


def _names(works: Sequence[Work]) -> str:
    return ", ".join(f"{work.shard.stem}{work.shard.which}" for work in works)
