"""How many actors there are, and what each of them gets, from what a cluster has: arithmetic, without Ray."""

import dataclasses

from pez.errors import UserError
from pipeline.settings import ClusterSettings


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a cluster has now."""

    gpus: float
    cpus: float
    fixed: bool = False
    """no machine can join: it is a Ray of this machine only"""


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


def caption_plan(settings: ClusterSettings, device: str | None, have: Resources) -> ActorPlan:
    """What the actors of captions get.

    Args:
        device: that the user asks for; None = a GPU where there is one.

    Raises:
        UserError: more is asked of a Ray of this machine than the machine has, so that no actor would ever start; or
            two options contradict each other.
    """
    _check(settings, device, have)
    gpus, cpus = have.gpus, have.cpus
    asks_gpu = device not in (None, "cpu") or bool(settings.gpus_per_actor)  # where none is yet, one may join
    wants_gpu = settings.gpus_per_actor != 0 and device != "cpu" and (gpus > 0 or asks_gpu)
    per_actor = (settings.gpus_per_actor or 1.0) if wants_gpu else 0.0
    actors = settings.actors or max(1, int(gpus / per_actor) if wants_gpu else int(cpus // 4))
    share = settings.cpus_per_actor or (max(cpus / actors, 0.01) if cpus < actors else float(int(cpus // actors)))
    if wants_gpu:
        share = settings.cpus_per_actor or min(share, 8.0)
    return ActorPlan(actors, per_actor, share, max(1, int(share)), (device or "cuda") if wants_gpu else "cpu")


def verify_plan(settings: ClusterSettings, captions: ActorPlan, have: Resources) -> tuple[ActorPlan, ActorPlan]:
    """The plan of the caption actors, with room for verifiers where GPUs are left, and that of the verifiers.

    Verifiers are planned for the whole cluster: those for which the caption actors leave no room start after them.
    """
    gpus, cpus = have.gpus, have.cpus
    per_verifier = captions.gpus if settings.gpus_per_verifier is None else settings.gpus_per_verifier
    if not per_verifier:
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
    device = "cuda" if captions.device == "cpu" else captions.device
    return captions, ActorPlan(count, per_verifier, min(1.0, cpus / count), 2, device)


def _check(settings: ClusterSettings, device: str | None, have: Resources) -> None:
    for name in ("gpus_per_actor", "gpus_per_verifier"):
        asked = getattr(settings, name) or 0.0
        if asked and device == "cpu":
            raise UserError(f"{name} is {asked:g} and device is cpu; leave one of them out")
        if asked > 1 and asked != int(asked):
            raise UserError(f"{name} is {asked:g}; expected a whole number, or a part of one GPU, like 0.5")
        if have.fixed and asked > have.gpus:
            raise UserError(f"{name} is {asked:g}, and this machine has {_count(have.gpus)}; {_ELSEWHERE}")
    if device not in (None, "cpu") and have.fixed and not have.gpus and settings.gpus_per_actor != 0:
        raise UserError(
            f"device is {device}, and this machine has no GPU that Ray finds; {_ELSEWHERE}, or --device cpu"
        )
    if have.fixed and (settings.cpus_per_actor or 0) > have.cpus:
        raise UserError(f"cpus_per_actor is {settings.cpus_per_actor:g}, and this machine has {have.cpus:g} CPUs")


_ELSEWHERE = "ask for less, or give the --address of a cluster"


def _count(gpus: float) -> str:
    return "no GPU that Ray finds" if not gpus else f"{gpus:g} GPU{'' if gpus == 1 else 's'}"
