"""Lanes are independent: a prompt depends on its task, the settings and the seed."""

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import torch
from PIL import Image
from torch import Tensor

import pez
from pez.engine import Engine
from pez.methods.pez import adamw
from pez.objectives.clip import ClipObjective, Target
from pez.objectives.objective import Objective
from pez.seeds import generator_for
from pez.tasks import Learned, Step, Task
from pez.vocabulary import Vocabulary

SETTINGS = pez.PezSettings(tokens=4, steps=30, method="pez")


@pytest.fixture(scope="module")
def targets(demo_clip: pez.Clip, images: list[Image.Image]) -> Tensor:
    return demo_clip.image_features(images[:40])


def run(
    clip: pez.Clip, tasks: list[Task], lanes: int, settings: pez.PezSettings = SETTINGS, **options: object
) -> dict[str, Learned]:
    objective = ClipObjective(clip.encoder(settings.tokens))
    engine = Engine(objective, clip.vocabulary(settings), settings, lanes, **options)  # type: ignore[arg-type]
    return {learned.task.key: learned for finished in engine.run(tasks) for learned in finished}


def same(one: Learned, other: Learned) -> bool:
    return torch.equal(one.token_ids, other.token_ids) and one.score == other.score


def test_a_prompt_learned_in_a_batch_equals_the_prompt_learned_alone(demo_clip: pez.Clip, targets: Tensor) -> None:
    tasks = [Task(f"{i}", t) for i, t in enumerate(targets)]
    together = run(demo_clip, tasks, lanes=48)
    for i in (0, 17, 39):
        assert same(together[f"{i}"], run(demo_clip, [tasks[i]], lanes=48)[f"{i}"])


def test_order_and_refill_change_nothing(demo_clip: pez.Clip, targets: Tensor) -> None:
    tasks = [Task(f"{i}", t) for i, t in enumerate(targets)]
    one, other = run(demo_clip, tasks, lanes=16), run(demo_clip, tasks[::-1], lanes=16)
    assert len(one) == 40
    assert all(same(one[key], other[key]) for key in one)


def test_the_number_of_lanes_changes_nothing(demo_clip: pez.Clip, targets: Tensor) -> None:
    settings = dataclasses.replace(SETTINGS, method="default")
    tasks = [Task(f"{i}", t) for i, t in enumerate(targets)]
    one, other = run(demo_clip, tasks, 16, settings), run(demo_clip, tasks, 48, settings)
    assert all(same(one[key], other[key]) for key in one)


def test_lanes_that_start_at_different_steps_do_not_meet(demo_clip: pez.Clip, targets: Tensor) -> None:
    engine = Engine(ClipObjective(demo_clip.encoder(4)), demo_clip.vocabulary(SETTINGS), SETTINGS, 16)
    engine.submit(Task("0", targets[0]))
    for _ in range(7):
        assert engine.step() == []
    assert (engine.learning, engine.steps, engine.free) == (1, 7, 15)
    engine.submit(Task("1", targets[1]))
    late = []
    while engine.busy:
        late += engine.step()
    alone = run(demo_clip, [Task("0", targets[0]), Task("1", targets[1])], lanes=16)
    assert [learned.task.key for learned in late] == ["0", "1"]
    assert all(same(learned, alone[learned.task.key]) for learned in late)


def test_tasks_beyond_the_lanes_wait_and_a_cleared_engine_begins_anew(demo_clip: pez.Clip, targets: Tensor) -> None:
    engine = Engine(ClipObjective(demo_clip.encoder(4)), demo_clip.vocabulary(SETTINGS), SETTINGS, 16)
    tasks = [Task(f"{i}", t) for i, t in enumerate(targets[:20])]
    for task in tasks:
        engine.submit(task)
    engine.step()
    assert (engine.learning, engine.free) == (16, 0)
    engine.clear()
    assert not engine.busy
    assert (engine.learning, engine.steps, engine.free) == (0, 0, 16)
    [[learned]] = engine.run(tasks[:1])
    assert same(learned, run(demo_clip, tasks[:1], lanes=16)["0"])


def test_swaps_take_a_full_batch_or_what_waits_when_the_walk_is_idle(demo_clip: pez.Clip, targets: Tensor) -> None:
    settings = dataclasses.replace(SETTINGS, method="default", steps=3, swaps=2)
    tasks = [Task(f"{i}", t) for i, t in enumerate(targets)]
    engine = Engine(ClipObjective(demo_clip.encoder(4)), demo_clip.vocabulary(settings), settings, 16)
    assert [len(finished) for finished in engine.run(tasks)] == [16, 16, 8]


def test_another_seed_starts_elsewhere(demo_clip: pez.Clip, targets: Tensor) -> None:
    seen: list[Step] = []
    for seed in (0, 1):
        settings = dataclasses.replace(SETTINGS, seed=seed, steps=1)
        run(demo_clip, [Task("a", targets[0])], 16, settings, on_step=seen.append)
    assert not torch.equal(seen[0].token_ids[0], seen[1].token_ids[0])


def test_the_best_of_all_steps_and_restarts_is_kept(demo_clip: pez.Clip, targets: Tensor) -> None:
    seen: list[Step] = []
    settings = dataclasses.replace(SETTINGS, restarts=3)
    learned = run(demo_clip, [Task("a", targets[0])], 16, settings, on_step=seen.append)["a"]
    scores = torch.stack([step.score for step in seen])  # (steps, restarts)
    assert scores.shape == (30, 3)
    assert learned.steps == 90
    assert learned.score == scores.max().item()
    step, restart = divmod(int(scores.argmax()), 3)
    assert torch.equal(learned.token_ids, seen[step].token_ids[restart])
    starts = {tuple(row) for row in seen[0].token_ids.tolist()}
    assert len(starts) == 3


WITH_SWAPS = dataclasses.replace(SETTINGS, method="default", steps=10, swaps=4)


def test_a_restart_is_a_whole_search(demo_clip: pez.Clip, targets: Tensor) -> None:
    """With swaps of its own: the best of three walks alone is not always the best after the swaps."""
    tasks = [Task(f"{i}", t) for i, t in enumerate(targets[:8])]
    vocabulary, best = demo_clip.vocabulary(WITH_SWAPS), run(demo_clip, tasks, 16, WITH_SWAPS)
    for restart in (1, 2):
        starts = [vocabulary.random_ids(4, generator_for(WITH_SWAPS.seed, task.key, restart)) for task in tasks]
        others = [dataclasses.replace(task, initial_ids=ids) for task, ids in zip(tasks, starts, strict=True)]
        for key, other in run(demo_clip, others, 16, WITH_SWAPS).items():
            best[key] = max(best[key], other, key=lambda learned: learned.score)
    found = run(demo_clip, tasks, 16, dataclasses.replace(WITH_SWAPS, restarts=3))
    assert all(same(found[key], best[key]) for key in best)
    assert {learned.steps for learned in found.values()} == {30}


def test_restarts_do_not_depend_on_lanes_or_neighbors(demo_clip: pez.Clip, targets: Tensor) -> None:
    settings = dataclasses.replace(WITH_SWAPS, restarts=20, candidates_kept=5)
    tasks = [Task(f"{i}", t) for i, t in enumerate(targets[:5])]
    one, other = run(demo_clip, tasks, 16, settings), run(demo_clip, tasks[::-1], 64, settings)
    assert set(one) == set("01234"), "with fewer lanes than restarts, too"
    for key, learned in one.items():
        assert same(learned, other[key])
        assert learned.seen is not None
        ids, scores = learned.seen
        assert learned.score == scores.max() == scores[0]
        assert len({tuple(row) for row in ids.tolist()}) == len(ids) > 5, "each prompt once"
        for mine, others in zip(learned.seen, other[key].seen or (), strict=True):
            assert torch.equal(mine, others)


def test_progress_of_finalists(demo_clip: pez.Clip, targets: Tensor) -> None:
    settings = dataclasses.replace(WITH_SWAPS, restarts=10, finalists=1)
    engine = Engine(ClipObjective(demo_clip.encoder(4)), demo_clip.vocabulary(settings), settings, 16)
    engine.submit(Task("0", targets[0]))
    engine.submit(Task("1", targets[1]))
    assert [engine.step() for _ in range(9)] == [[]] * 9
    assert (engine.learning, engine.busy_lanes, engine.steps) == (2, 16, 9 * 16)
    [] = engine.step()
    assert engine.learning == 2, "the first waits for swaps, the second for the rest of its searches"
    assert engine.steps == 16 * 10
    found = [learned for _ in range(11) for learned in engine.step()]
    assert [learned.task.key for learned in found] == ["0", "1"]
    assert {learned.steps for learned in found} == {100}


def test_progress_counts_tasks_and_the_steps_of_all_their_restarts(demo_clip: pez.Clip, targets: Tensor) -> None:
    settings = dataclasses.replace(WITH_SWAPS, restarts=3)
    engine = Engine(ClipObjective(demo_clip.encoder(4)), demo_clip.vocabulary(settings), settings, 16)
    assert engine.free == 6, "the sixth starts with one of its restarts"
    for i in range(6):
        engine.submit(Task(f"{i}", targets[i]))
    for step in range(1, 10):
        assert engine.step() == []
        assert (engine.learning, engine.busy_lanes, engine.steps) == (6, 16, 16 * step)
    assert len(engine.step()) == 5
    assert (engine.learning, engine.steps) == (1, 10 + 4), "one of the three restarts of the sixth has ended"
    assert engine.busy_lanes == 0, "its two others start in the next step"
    engine.step()
    assert (engine.learning, engine.busy_lanes, engine.steps) == (1, 2, 10 + 4 + 2)
    [last] = [learned for _ in range(10) for learned in engine.step()]
    assert last.steps == 30
    assert (engine.learning, engine.steps, engine.free) == (0, 0, 6)


def test_initial_ids_are_the_first_step(demo_clip: pez.Clip, targets: Tensor) -> None:
    seen: list[Step] = []
    ids = demo_clip.vocabulary(SETTINGS).ids[[3, 1, 4, 1]]
    run(demo_clip, [Task("a", targets[0], initial_ids=ids)], 16, on_step=seen.append)
    assert torch.equal(seen[0].token_ids[0], ids)


def test_initial_ids_of_another_length_are_refused(demo_clip: pez.Clip, targets: Tensor) -> None:
    with pytest.raises(ValueError, match=r"initial_ids have shape \(3,\); expected \(4,\)"):
        run(demo_clip, [Task("a", targets[0], initial_ids=torch.tensor([1, 2, 3]))], 16)


def test_a_negative_target_is_walked_away_from(demo_clip: pez.Clip, targets: Tensor) -> None:
    near, far = (
        run(demo_clip, [Task("a", Target(targets[:1], torch.tensor([w])).direction())], 16)["a"] for w in (1.0, -1.0)
    )
    features = demo_clip.token_features(torch.stack([near.token_ids, far.token_ids]))
    to_near, to_far = (features @ targets[0]).tolist()
    assert to_near > 0.5 > 0.2 > to_far
    assert far.score == pytest.approx(-to_far, abs=1e-5)


def test_one_lane_moves_as_torch_adamw_does() -> None:
    torch.manual_seed(0)
    theirs = torch.nn.Parameter(torch.randn(1, 3, 5, dtype=torch.float64))
    ours, mean, square = theirs.detach().clone(), torch.zeros(1, 3, 5).double(), torch.zeros(1, 3, 5).double()
    optimizer = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.1)
    for count in range(1, 50):
        theirs.grad = torch.randn_like(theirs)
        adamw(ours, theirs.grad, mean, square, torch.full((1, 1, 1), float(count)).double(), 0.1, 0.1)
        optimizer.step()
        torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-12)


class Bowl(Objective):
    """An objective without a model: nearness to a point, so that the optimiser is seen to need nothing else."""

    def score(self, soft: Tensor, batch: Tensor) -> Tensor:
        return -(soft.mean(1) - batch).square().sum(-1)


def test_any_objective_will_do() -> None:
    torch.manual_seed(0)
    vocabulary = Vocabulary(torch.randn(200, 4), torch.ones(200, dtype=torch.bool))
    target = vocabulary.embedding[:50].mean(0)
    engine = Engine(Bowl(), vocabulary, pez.PezSettings(tokens=3, steps=200), lanes=16)
    [[learned]] = engine.run([Task("a", target)])
    start = vocabulary.embedding[vocabulary.random_ids(3, torch.Generator().manual_seed(0))].mean(0)
    assert learned.score > -0.3 * (start - target).square().sum()


class Small(ClipObjective):
    """A device with room for 16 lanes in the walk, and for as many in the swaps, which counts how often it was too small."""

    def __init__(self, clip: pez.Clip, walk: int = 16, swaps: int = 16) -> None:
        super().__init__(clip.encoder(4))
        self.walk, self.swaps = walk, swaps
        self.failures: list[int] = []

    def score(self, soft: Tensor, batch: Tensor) -> Tensor:
        self._expect_room(len(soft), self.walk)
        return super().score(soft, batch)

    def score_and_keep(self, soft: Tensor, batch: Tensor) -> tuple[Tensor, Any]:
        self._expect_room(len(soft), self.swaps)
        return super().score_and_keep(soft, batch)

    def _expect_room(self, lanes: int, room: int) -> None:
        if lanes > room:
            self.failures.append(lanes)
            raise torch.OutOfMemoryError("no room")


@pytest.mark.parametrize(("restarts", "finalists"), [(3, 3), (12, 1), (5, 2)])
def test_out_of_memory_loses_no_restart(demo_clip: pez.Clip, targets: Tensor, restarts: int, finalists: int) -> None:
    settings = dataclasses.replace(WITH_SWAPS, restarts=restarts, finalists=finalists)
    tasks = [Task(f"{i}", t) for i, t in enumerate(targets[:12])]
    engine = Engine(Small(demo_clip), demo_clip.vocabulary(settings), settings, 64)
    with pytest.warns(UserWarning, match="out of memory with 64 lanes; continuing with 32"):
        found = {learned.task.key: learned for finished in engine.run(tasks) for learned in finished}
    alone = run(demo_clip, tasks, 16, settings)
    assert len(found) == 12
    assert all(same(found[key], alone[key]) for key in alone)
    assert (engine.learning, engine.busy_lanes, engine.steps, engine.busy) == (0, 0, 0, False)


def test_out_of_memory_halves_the_lanes_and_loses_no_task(demo_clip: pez.Clip, targets: Tensor) -> None:
    tasks = [Task(f"{i}", t) for i, t in enumerate(targets)]
    small = Small(demo_clip)
    engine = Engine(small, demo_clip.vocabulary(SETTINGS), SETTINGS, 64)
    with pytest.warns(UserWarning, match="out of memory with 64 lanes; continuing with 32"):
        found = [learned for finished in engine.run(tasks) for learned in finished]
    alone = run(demo_clip, tasks, lanes=16)
    assert sorted(learned.task.key for learned in found) == sorted(alone)
    assert all(same(learned, alone[learned.task.key]) for learned in found)
    assert small.failures == [48, 32]  # of 64 lanes a CPU computes those in use


def test_out_of_memory_in_the_swaps_halves_the_lanes_and_loses_no_task(demo_clip: pez.Clip, targets: Tensor) -> None:
    settings = dataclasses.replace(SETTINGS, method="default", steps=2, swaps=5)
    tasks = [Task(f"{i}", t) for i, t in enumerate(targets)]
    engine = Engine(Small(demo_clip, walk=64), demo_clip.vocabulary(settings), settings, 64)
    with pytest.warns(UserWarning, match="out of memory with swaps of 48 lanes; continuing with 16"):
        found = [learned for finished in engine.run(tasks) for learned in finished]
    alone = run(demo_clip, tasks, 16, settings)
    assert len(found) == len(alone) == 40
    assert all(same(learned, alone[learned.task.key]) for learned in found)


def test_lanes_that_memory_did_not_allow_are_not_tried_again(demo_clip: pez.Clip, targets: Tensor) -> None:
    settings = dataclasses.replace(SETTINGS, method="default", steps=2, swaps=2)
    tasks = [Task(f"{i}", t) for i, t in enumerate(targets)]
    small = Small(demo_clip, walk=32, swaps=16)
    engine = Engine(small, demo_clip.vocabulary(settings), settings, 64)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            assert sum(len(finished) for finished in engine.run([*tasks, *tasks])) == 80
            engine.clear()
    assert small.failures == [64, 64, 32]  # the walk once, the swaps twice, and then never again
    assert [str(warning.message) for warning in seen] == [
        "out of memory with 64 lanes; continuing with 32",
        "out of memory with swaps of 64 lanes; continuing with 32",
        "out of memory with swaps of 32 lanes; continuing with 16",
    ]


def test_no_room_for_sixteen_lanes_is_an_error(demo_clip: pez.Clip, targets: Tensor) -> None:
    engine = Engine(Small(demo_clip, walk=8), demo_clip.vocabulary(SETTINGS), SETTINGS, 16)
    with pytest.raises(torch.OutOfMemoryError):
        list(engine.run([Task("a", targets[0])]))


def test_ten_thousand_tasks_stream_through_in_flat_memory(demo_clip: pez.Clip, targets: Tensor) -> None:
    settings = pez.PezSettings(tokens=2, steps=1, method="pez")
    given = 0

    def tasks() -> Iterator[Task]:
        nonlocal given
        for given in range(1, 10_001):
            yield Task(f"{given}", targets[given % len(targets)])

    engine = Engine(ClipObjective(demo_clip.encoder(2)), demo_clip.vocabulary(settings), settings, 64)
    process, most, done = psutil.Process(), 0, 0
    for finished in engine.run(tasks()):
        done += len(finished)
        assert given - done <= 64  # nothing is drawn ahead of a free lane
        if done == 640:
            before = process.memory_info().rss
        most = process.memory_info().rss
    assert done == 10_000
    assert most - before < 30e6


def test_exact_is_another_way_to_write_the_method() -> None:
    assert pez.PezSettings(exact=True) == pez.PezSettings(method="pez")
    assert pez.PezSettings(exact=False) == pez.PezSettings()
    assert dataclasses.replace(pez.PezSettings(exact=True), steps=3) == pez.PezSettings(steps=3, method="pez")
    assert dataclasses.replace(pez.PezSettings(exact=True), method="default") == pez.PezSettings()
    with pytest.raises(ValueError, match="exact is 'yes'; expected True or False"):
        pez.PezSettings(exact="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="method is 'beam'; expected one of default, pez"):
        pez.PezSettings(method="beam")  # type: ignore[arg-type]


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="tokens is 0; expected 1 or more"):
        pez.PezSettings(tokens=0)
    with pytest.raises(ValueError, match="learning_rate is 0.0; expected more than 0"):
        pez.PezSettings(learning_rate=0.0)
