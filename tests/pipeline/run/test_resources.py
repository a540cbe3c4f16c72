"""How many actors, with what: from options and from what a cluster has; what can never be is refused."""

from typing import Any

import pytest

from pez.errors import UserError
from pipeline.run.resources import ActorPlan, Resources, learn_plan, verify_plan
from pipeline.settings import ClusterSettings

HERE = Resources(gpus=0, cpus=2, fixed=True)


def test_the_plan_fits_the_cluster() -> None:
    assert learn_plan(ClusterSettings(), None, HERE) == ActorPlan(1, 0.0, 2.0, 2, "cpu")
    assert learn_plan(ClusterSettings(actors=2), None, HERE) == ActorPlan(2, 0.0, 1.0, 1, "cpu")
    assert learn_plan(ClusterSettings(actors=4), None, HERE) == ActorPlan(4, 0.0, 0.5, 1, "cpu")


@pytest.mark.parametrize(
    ("settings", "have", "learners", "verifiers"),
    [
        ({}, (0, 2), (1, 0.0, 2.0, 2, "cpu"), (1, 0.0, 2.0, 2, "cpu")),
        ({"cpus_per_actor": 1.0}, (0, 2), (1, 0.0, 1.0, 1, "cpu"), (1, 0.0, 1.0, 1, "cpu")),
        ({"verify_actors": 2}, (0, 2), (1, 0.0, 2.0, 2, "cpu"), (2, 0.0, 1.0, 1, "cpu")),
        ({}, (8, 64), (8, 1.0, 8.0, 8, "cuda"), (8, 1.0, 1.0, 2, "cuda")),  # one after the other
        ({"actors": 6}, (8, 48), (6, 1.0, 7.0, 7, "cuda"), (8, 1.0, 1.0, 2, "cuda")),  # two beside six
        ({"gpus_per_actor": 0.5, "actors": 1}, (1, 8), (1, 0.5, 7.0, 7, "cuda"), (2, 0.5, 1.0, 2, "cuda")),
        ({"gpus_per_verifier": 0.0}, (1, 8), (1, 1.0, 8.0, 8, "cuda"), (2, 0.0, 4.0, 4, "cpu")),
        ({"gpus_per_actor": 0.0, "gpus_per_verifier": 1.0}, (1, 8), (2, 0.0, 3.0, 3, "cpu"), (1, 1.0, 1.0, 2, "cuda")),
    ],
)
def test_verifiers_fit_beside_or_after_the_actors_that_learn(
    settings: dict[str, Any], have: tuple[int, int], learners: tuple[Any, ...], verifiers: tuple[Any, ...]
) -> None:
    chosen, there = ClusterSettings(**settings), Resources(float(have[0]), float(have[1]))
    plans = verify_plan(chosen, learn_plan(chosen, None, there), there)
    assert plans == (ActorPlan(*learners), ActorPlan(*verifiers))


@pytest.mark.parametrize(
    ("settings", "device", "have", "told"),
    [
        ({}, "cuda", HERE, "device is cuda, and this machine has no GPU that Ray finds"),
        ({"gpus_per_actor": 1.0}, None, HERE, "gpus_per_actor is 1, and this machine has no GPU that Ray finds"),
        (
            {"gpus_per_verifier": 0.5},
            None,
            HERE,
            "gpus_per_verifier is 0.5, and this machine has no GPU that Ray finds",
        ),
        (
            {"gpus_per_actor": 2.0},
            "cuda",
            Resources(1, 8, fixed=True),
            "gpus_per_actor is 2, and this machine has 1 GPU;",
        ),
        ({"cpus_per_actor": 64.0}, None, HERE, "cpus_per_actor is 64, and this machine has 2 CPUs"),
        (
            {"gpus_per_actor": 1.0},
            "cpu",
            Resources(8, 64),
            "gpus_per_actor is 1 and device is cpu; omit one of them",
        ),
        ({"gpus_per_actor": 1.5}, None, Resources(8, 64), "gpus_per_actor is 1.5; expected an integer"),
    ],
)
def test_what_no_machine_will_ever_give_is_refused(
    settings: dict[str, Any], device: str | None, have: Resources, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        learn_plan(ClusterSettings(**settings), device, have)


@pytest.mark.parametrize("settings", [{}, {"gpus_per_actor": 1.0}, {"gpus_per_verifier": 1.0, "cpus_per_actor": 64.0}])
def test_a_cluster_may_still_grow_into_what_is_asked(settings: dict[str, Any]) -> None:
    """Its GPU nodes start when actors ask for them."""
    plan = learn_plan(ClusterSettings(**settings), "cuda", Resources(gpus=0, cpus=4))
    assert (plan.actors, plan.gpus, plan.device) == (1, 1.0, "cuda")


def test_gpus_for_each_actor_mean_the_gpu_also_where_none_has_joined_yet() -> None:
    plan = learn_plan(ClusterSettings(gpus_per_actor=1.0, actors=4), None, Resources(gpus=0, cpus=4))
    assert (plan.actors, plan.gpus, plan.device) == (4, 1.0, "cuda")
