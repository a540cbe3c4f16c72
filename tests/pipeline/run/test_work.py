"""The queue of a stage without actors: what is retried, when, how often, beside what, and what the user reads of it."""

from typing import Any

import pytest

from pipeline.run.tasks import Merge, Part, Task, Whole, split, tasks_of
from pipeline.run.work import Executor, Work, WorkQueue
from pipeline.sources.base import Unit, UnitError


class Stage:
    """A queue with a clock that stands still until it is moved, and the notes and failures that it reports."""

    def __init__(self, names: str = "", executors: int = 1, **settings: Any) -> None:
        self.now = 1000.0
        self.notes: list[str] = []
        self.failures: list[tuple[str, str, str]] = []
        self.queue = WorkQueue[Executor](
            "learning",
            limit=executors,
            on_note=self.notes.append,
            on_failure=lambda task, reason, trace: self.failures.append((str(task), reason, trace)),
            clock=lambda: self.now,
            **{"attempts": 3, **settings},
        )
        self.queue.add(tasks_of(unit(name) for name in names))
        for _ in range(executors):
            self.join()

    def join(self) -> Executor:
        executor = Executor()
        self.queue.join(executor)
        return executor

    def give(self) -> dict[str, tuple[Executor, Work]]:
        """Assign; what was given by name."""
        return {str(work.task): (executor, work) for executor, work in self.queue.assign()}

    def only(self) -> tuple[Executor, Work]:
        """The only task that can be given now."""
        [given] = self.give().values()
        return given

    def fail(self, message: str = "out of reach", permanent: bool = False) -> None:
        self.queue.failed(*self.only(), UnitError(message, permanent), "Traceback ...")


def unit(name: str) -> Unit:
    return Unit(f"mem://{name}", name)


def test_every_unit_is_done_once() -> None:
    stage = Stage("abc", executors=2)
    left = []
    while stage.queue.unfinished:
        left += [stage.queue.done(executor, work) for executor, work in stage.give().values()]
    assert left == [unit("a"), unit("b"), unit("c")]
    assert (stage.queue.given_up, stage.notes) == ({}, [])


def test_a_unit_that_fails_is_retried_after_1_2_and_4_seconds_and_then_given_up_with_its_reason() -> None:
    stage = Stage("a", attempts=4)
    for wait in (1, 2, 4):
        stage.fail()
        assert stage.notes[-1] == f"a: learning: out of reach. Retrying in {wait} s"
        stage.now += wait - 0.01
        assert not stage.give()
        assert stage.queue.seconds_to_next() == pytest.approx(0.01)
        stage.now += 0.01
    stage.fail("out of\nreach")
    assert not stage.queue.unfinished
    assert stage.queue.given_up == {"mem://a": "learning: out of\nreach (4 attempts)"}
    assert [failure[:2] for failure in stage.failures[:3]] == [("a", "learning: out of reach")] * 3
    assert {trace for _, _, trace in stage.failures} == {"Traceback ..."}


def test_the_wait_between_attempts_does_not_grow_beyond_a_minute() -> None:
    stage = Stage("a", attempts=20)
    for _ in range(12):
        stage.fail()
        stage.now += 60
    assert stage.notes[-1].endswith("Retrying in 60 s")


def test_an_error_that_no_retry_can_fix_is_tried_once() -> None:
    stage = Stage("a")
    stage.fail("not a tar: a picture", permanent=True)
    assert stage.queue.given_up == {"mem://a": "learning: not a tar: a picture"}
    assert stage.notes == []


def test_others_are_done_while_a_unit_waits_for_its_retry() -> None:
    stage = Stage("ab")
    executor, work = stage.only()
    stage.queue.failed(executor, work, UnitError("out of reach"), "")
    assert list(stage.give()) == ["b"]


def test_an_actor_that_dies_with_one_unit_has_it_retried_at_once_and_charged() -> None:
    stage = Stage("a", attempts=2)
    stage.queue.died(stage.only()[0], "the actor died")
    assert stage.notes == ["a: learning: the actor died. Retrying"]
    stage.join()
    stage.queue.died(stage.only()[0], "the actor died")
    assert stage.queue.given_up == {"mem://a": "learning: the actor died (2 attempts)"}
    assert stage.failures == [("a", "learning: the actor died", "")] * 2


def test_of_units_in_work_together_the_one_that_kills_is_found_and_the_others_are_not_charged() -> None:
    stage = Stage("abcd", concurrent=3, attempts=1)
    executor = stage.give()["b"][0]
    stage.queue.died(executor, "the actor died")
    assert stage.notes == ["a, b, c: learning: the actor died. Retrying one at a time"]
    stage.join()
    assert list(stage.give()) == ["d"], "suspects are not given beside it"
    [d] = stage.queue.executors[0].works
    stage.queue.done(stage.queue.executors[0], d)
    for name in "abc":
        given = stage.give()
        assert list(given) == [name], "nothing is given beside a suspect"
        if name == "b":
            stage.queue.died(given[name][0], "the actor died")
            stage.join()
        else:
            stage.queue.done(*given[name])
    assert stage.queue.given_up == {"mem://b": "learning: the actor died"}


def test_a_lost_node_is_not_charged_until_it_happens_four_times_as_often() -> None:
    stage = Stage("a", attempts=2)
    for _ in range(8):
        assert stage.queue.unfinished
        stage.queue.node_lost(stage.only()[0])
        stage.join()
    assert stage.notes == ["a: learning: the node was lost. Retrying"] * 7
    assert stage.queue.given_up == {"mem://a": "learning: the node was lost (8 attempts)"}


def test_units_that_a_node_takes_away_together_are_no_suspects() -> None:
    stage = Stage("ab", concurrent=2)
    stage.queue.node_lost(stage.give()["a"][0])
    stage.join()
    assert list(stage.give()) == ["a", "b"]


def test_a_unit_that_hangs_is_charged_and_what_its_actor_has_beside_it_comes_first() -> None:
    stage = Stage("abcd", concurrent=3, timeout=60.0)
    executor = stage.give()["a"][0]
    stage.now += 60
    assert stage.queue.expire() == []
    stage.now += 1
    assert stage.queue.expire() == [executor]
    assert stage.notes == ["a: learning: timed out after 60 s. Retrying"]
    assert [name for name, _, _ in stage.failures] == ["a"]
    stage.join()
    assert list(stage.give()) == ["b", "c", "d"]


def test_the_time_of_a_unit_runs_from_when_it_is_the_oldest_of_its_actor() -> None:
    stage = Stage("ab", concurrent=2, timeout=60.0)
    given = stage.give()
    stage.now += 50
    stage.queue.done(*given["a"])
    stage.now += 50
    assert stage.queue.expire() == []
    stage.now += 11
    assert stage.queue.expire() == [given["b"][0]]


def test_each_actor_gets_its_first_unit_before_any_gets_its_second() -> None:
    stage = Stage("abcdefghijkl", executors=2, concurrent=2)
    one, two = stage.queue.executors
    assert [executor for executor, _ in stage.queue.assign()] == [one, two, one, two]


def test_near_the_end_actors_have_fewer_units_at_once_so_that_all_end_together() -> None:
    stage = Stage(executors=2, concurrent=4)
    stage.queue.add(tasks_of(unit(str(i)) for i in range(100)))
    held = []
    while stage.queue.unfinished:
        stage.queue.assign()
        held.append(max(len(executor.works) for executor in stage.queue.executors))
        for executor in stage.queue.executors:
            for work in list(executor.works):
                stage.queue.done(executor, work)
    assert held[0] == 4
    assert held[-1] == 1
    assert held == sorted(held, reverse=True)


def test_actors_are_started_for_units_that_no_idle_one_can_take() -> None:
    stage = Stage("abc", executors=0)
    stage.queue.limit = 5
    assert stage.queue.missing() == 3
    starting = stage.join()
    starting.ready = False
    assert stage.queue.missing() == 2
    assert stage.queue.starved
    assert not stage.give()
    stage.queue.started(starting)
    assert list(stage.give()) == ["a"]
    assert not stage.queue.starved


def test_the_last_part_of_a_unit_is_followed_by_the_merge_after_which_it_leaves() -> None:
    stage = Stage()
    stage.queue.add([*tasks_of([unit("a")], 3), Whole(unit("b"))])
    seen: list[Task] = []
    left = []
    while stage.queue.unfinished:
        executor, work = stage.only()
        seen.append(work.task)
        left.append(stage.queue.done(executor, work))
    assert seen == [*split(unit("a"), 3), Merge(unit("a"), 3), Whole(unit("b"))]
    assert left == [None, None, None, unit("a"), unit("b")]


def test_a_part_that_is_given_up_is_named_and_its_unit_is_not_merged() -> None:
    stage = Stage(attempts=1)
    stage.queue.add([Part(unit("a"), 0, 2), Part(unit("a"), 1, 2)])
    stage.fail()
    assert stage.queue.done(*stage.only()) is None
    assert not stage.queue.unfinished
    assert stage.queue.given_up == {"mem://a": "learning, part 0-of-2: out of reach"}


def test_a_stage_without_a_name_gives_the_reason_alone() -> None:
    stage = Stage("a", attempts=1)
    stage.queue.name = ""
    stage.fail()
    assert stage.queue.given_up == {"mem://a": "out of reach"}


LESS = "fewer --actors or smaller --lanes need less memory"


def test_memory_that_is_short_for_a_moment_costs_no_unit() -> None:
    stage = Stage("ab", concurrent=2, attempts=1)
    stage.queue.memory_short(stage.give()["a"][0], "memory ran short")
    assert stage.notes == [f"a, b: learning: memory ran short. Retrying in 1 s; {LESS}"]
    assert stage.queue.missing() == 0, "the next actor waits too"
    stage.now += 1
    assert stage.queue.missing() == 1
    stage.join()
    given = stage.give()
    assert list(given) == ["a"], "one at a time needs less memory"
    stage.queue.done(*given["a"])
    stage.queue.done(*stage.only())
    assert stage.queue.given_up == {}


def test_a_unit_that_needs_more_memory_than_there_is_is_given_up_and_the_others_are_done() -> None:
    stage = Stage("abc", attempts=1)
    done = []
    while stage.queue.unfinished:
        executor, work = stage.only()
        if work.task == Whole(unit("a")):
            stage.queue.memory_short(executor, "memory ran short")
            stage.now += 60
            stage.join()
        else:
            done.append(stage.queue.done(executor, work))
    assert done == [unit("b"), unit("c")]
    assert len(stage.failures) == 4, "one before others were done, three after"
    assert stage.queue.given_up == {"mem://a": "learning: memory ran short (3 attempts)"}
    assert stage.notes[-1] == f"learning: memory ran short; {LESS}"


def test_while_others_get_done_a_unit_that_runs_short_of_memory_is_retried_many_times() -> None:
    stage = Stage("ab", executors=2, attempts=1)
    given = stage.give()
    executor = given["a"][0]
    for _ in range(20):
        stage.queue.memory_short(executor, "memory ran short")
        stage.now += 60
        executor = stage.join()
        assert list(stage.give()) == ["a"]
    assert stage.queue.given_up == {}


def test_one_shortage_that_ends_several_actors_counts_once() -> None:
    stage = Stage("abc", executors=3)
    for executor, _ in stage.give().values():
        stage.queue.memory_short(executor, "memory ran short")
    assert [note.partition("Retrying in ")[2] for note in stage.notes] == [f"1 s; {LESS}"] * 3
    assert stage.queue.given_up == {}


def test_actors_that_memory_ends_at_their_start_are_restarted_and_in_the_end_every_unit_has_the_reason() -> None:
    stage = Stage("ab", executors=0)
    stage.queue.limit = 1
    for attempt in range(3):
        starting = stage.join()
        starting.ready = False
        stage.queue.memory_short(starting, "memory ran short")
        stage.now += 60
        if attempt < 2:
            assert stage.notes[-1] == (f"learning: memory ran short. Restarting the actor in {attempt + 1} s; {LESS}")
    assert stage.notes[-1] == f"learning: memory ran short; {LESS}"
    assert stage.queue.given_up == dict.fromkeys(["mem://a", "mem://b"], "learning: memory ran short (3 attempts)")


def test_memory_that_another_stage_uses_does_not_count_against_a_unit() -> None:
    stage, other = Stage("a", attempts=1), Stage("b")
    stage.queue.beside = [other.queue]
    other.give()
    for _ in range(5):
        stage.queue.memory_short(stage.only()[0], "memory ran short")
        stage.now += 60
        stage.join()
    assert stage.queue.given_up == {}


def test_idle_actors_above_the_minimum_end_while_no_task_waits() -> None:
    stage = Stage("abc", executors=3)
    given = stage.give()
    stage.queue.done(*given["a"])
    stage.now += 30
    stage.queue.done(*given["b"])
    stage.now += 40
    assert stage.queue.surplus(1, seconds=60) == [given["a"][0]]
    assert stage.queue.surplus(3, seconds=60) == []
    stage.now += 30
    assert stage.queue.surplus(1, seconds=60) == [given["a"][0], given["b"][0]]
    assert stage.queue.surplus(2, seconds=60) == [given["a"][0]]
    stage.queue.add(tasks_of([unit("d"), unit("e"), unit("f"), unit("g")]))
    assert stage.queue.surplus(0, seconds=60) == []
