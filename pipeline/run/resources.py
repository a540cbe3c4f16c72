"""The number of actors and the resources of each, given those of the cluster; without Ray."""

import dataclasses

from pez.errors import UserError
from pipeline.settings import ClusterSettings


@dataclasses.dataclass(frozen=True)
class Resources:
    """The current resources of a cluster."""

    gpus: float
    cpus: float
    fixed: bool = False
    """no machine can join, because Ray runs on this machine only"""


@dataclasses.dataclass(frozen=True)
class ActorPlan:
    """Resources and threads of each actor."""

    actors: int
    gpus: float
    cpus: float
    threads: int
    device: str

    @property
    def resources(self) -> str:
        return f"{self.gpus:g} GPU and {self.cpus:g} CPU"


def learn_plan(settings: ClusterSettings, device: str | None, have: Resources) -> ActorPlan:
    """Plan the actors that learn.

    Args:
        device: given by the user; None = a GPU if there is one.

    Raises:
        UserError: an actor needs more than this machine has and no other can join, so it would never start; or two options
            contradict each other.
    """
    _check(settings, device, have)
    gpus, cpus = have.gpus, have.cpus
    names_gpu = device not in (None, "cpu") or bool(settings.gpus_per_actor)  # if there is none yet, one may join
    wants_gpu = settings.gpus_per_actor != 0 and device != "cpu" and (gpus > 0 or names_gpu)
    per_actor = (settings.gpus_per_actor or 1.0) if wants_gpu else 0.0
    actors = settings.actors or max(1, int(gpus / per_actor) if wants_gpu else int(cpus // 4))
    share = settings.cpus_per_actor or (max(cpus / actors, 0.01) if cpus < actors else float(int(cpus // actors)))
    if wants_gpu:
        share = settings.cpus_per_actor or min(share, 8.0)
    return ActorPlan(actors, per_actor, share, max(1, int(share)), (device or "cuda") if wants_gpu else "cpu")


def verify_plan(settings: ClusterSettings, learners: ActorPlan, have: Resources) -> tuple[ActorPlan, ActorPlan]:
    """The plan of the actors that learn, with room for verifiers if GPUs are left, and the plan of the verifiers.

    Verifiers are planned for the whole cluster; those without resources start when the others have finished.
    """
    gpus, cpus = have.gpus, have.cpus
    per_verifier = learners.gpus if settings.gpus_per_verifier is None else settings.gpus_per_verifier
    if not per_verifier:
        count = settings.verify_actors or max(1, int(cpus // 4))
        left = cpus - learners.actors * learners.cpus
        share = (left if left > 0 else cpus) / count
        threads = max(1, int(share))
        return learners, ActorPlan(count, 0.0, float(threads) if share >= 1 else max(share, 0.01), threads, "cpu")
    count = settings.verify_actors or max(1, int(gpus / per_verifier))
    beside = max(0, min(count, int((gpus - learners.actors * learners.gpus) / per_verifier)))
    if settings.cpus_per_actor is None:
        share = max((cpus - beside) / learners.actors, 0.01)
        share = min(learners.cpus, float(int(share)) if share >= 1 else share)
        learners = dataclasses.replace(learners, cpus=share, threads=max(1, int(share)))
    device = "cuda" if learners.device == "cpu" else learners.device
    return learners, ActorPlan(count, per_verifier, min(1.0, cpus / count), 2, device)


def export_plan(settings: ClusterSettings, have: Resources) -> ActorPlan:
    """Plan the actors that export: without GPU, one per CPU core, because they mostly wait for disks and networks."""
    _check(settings, "cpu", have)
    share = settings.cpus_per_actor or min(1.0, max(have.cpus, 0.01))
    actors = settings.actors or max(1, int(have.cpus // share))
    return ActorPlan(actors, 0.0, share, max(1, int(share)), "cpu")


def _check(settings: ClusterSettings, device: str | None, have: Resources) -> None:
    for name in ("gpus_per_actor", "gpus_per_verifier"):
        each = getattr(settings, name) or 0.0
        if each and device == "cpu":
            raise UserError(f"{name} is {each:g} and device is cpu; omit one of them")
        if each > 1 and each != int(each):
            raise UserError(f"{name} is {each:g}; expected an integer, or a fraction of one GPU such as 0.5")
        if have.fixed and each > have.gpus:
            raise UserError(f"{name} is {each:g}, and this machine has {_count(have.gpus)}; {_ELSEWHERE}")
    if device not in (None, "cpu") and have.fixed and not have.gpus and settings.gpus_per_actor != 0:
        raise UserError(
            f"device is {device}, and this machine has no GPU that Ray finds; {_ELSEWHERE}, or --device cpu"
        )
    if have.fixed and (settings.cpus_per_actor or 0) > have.cpus:
        raise UserError(f"cpus_per_actor is {settings.cpus_per_actor:g}, and this machine has {have.cpus:g} CPUs")


_ELSEWHERE = "request less, or pass the --address of a cluster"


def _count(gpus: float) -> str:
    return "no GPU that Ray finds" if not gpus else f"{gpus:g} GPU{'' if gpus == 1 else 's'}"
