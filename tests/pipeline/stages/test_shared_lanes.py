"""Shards that share lanes: the rows of one after the other, and each fails alone."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import pez
from pez.tasks import Learned, Task
from pipeline.settings import CaptionSettings
from pipeline.sources.base import Unit
from pipeline.stages.lanes import Request, Result, SharedLanes
from pipeline.stages.learn import Learner
from pipeline.stages.work_clock import WorkClock

SETTINGS, METHOD = CaptionSettings(model="demo", lanes=16), pez.PezSettings(tokens=4, steps=5, swaps=5)


def test_shards_that_share_lanes_have_the_rows_of_one_after_the_other(scene_tars: list[str], tmp_path: Path) -> None:
    shards = [Unit(url, Path(url).stem) for url in scene_tars]

    def rows(learner: Learner, shard: Unit) -> list:
        return sorted(learner.learn(shard, learner.items(shard, Counter())), key=lambda found: found[0])

    learner = Learner(SETTINGS, METHOD)
    one_after_the_other = [rows(learner, shard) for shard in shards]
    with ThreadPoolExecutor(3) as threads:
        for _ in range(2):  # the lanes are there for the next as well
            assert list(threads.map(lambda shard: rows(learner, shard), shards)) == one_after_the_other
    assert learner.progress.images == 0


class Pairs:
    """An engine that finishes two tasks at a time, or what it has when no more come; a task named `breaks` breaks it."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.steps = self.learning = 0
        self.failures = 0

    @property
    def free(self) -> int:
        return 2 - len(self.tasks)

    @property
    def busy(self) -> bool:
        return bool(self.tasks)

    def submit(self, task: Task) -> None:
        self.tasks.append(task)

    def step(self) -> list[Learned]:
        if any(task.key == "breaks" for task in self.tasks):
            self.failures += 1
            raise RuntimeError("the device is lost")
        done, self.tasks = self.tasks[:2], self.tasks[2:]
        return [Learned(task, torch.zeros(4, dtype=torch.long), 0.0, 1) for task in done]

    def clear(self) -> None:
        self.tasks = []


@pytest.fixture
def shared(demo_clip: pez.Clip) -> SharedLanes:
    lanes = SharedLanes(demo_clip, METHOD, 32)
    lanes._engine = Pairs()  # type: ignore[assignment]
    return lanes


def batch(*names: str) -> list[Request]:
    return [Request(name, name, handle=name) for name in names]


def names(found: Iterator[list[Result]]) -> list[str]:
    return sorted(result.handle for results in found for result in results)


def test_each_stream_gets_its_own_results(shared: SharedLanes) -> None:
    streams = [[batch(*(f"{s}-{i}-{j}" for j in range(3))) for i in range(10)] for s in range(6)]
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda stream: names(shared.results(stream)), streams))
    assert found == [sorted(request.key for batch in stream for request in batch) for stream in streams]


def test_a_stream_without_images_ends(shared: SharedLanes) -> None:
    assert names(shared.results([])) == []


def test_a_stream_that_cannot_be_read_on_fails_alone(shared: SharedLanes) -> None:
    def cut() -> Iterator[list[Request]]:
        yield batch("a", "b")
        raise OSError("truncated")

    with ThreadPoolExecutor(2) as threads:
        bad = threads.submit(lambda: names(shared.results(cut())))
        good = threads.submit(lambda: names(shared.results([batch("c"), batch("d")])))
        with pytest.raises(OSError, match="truncated"):
            bad.result()
        assert good.result() == ["c", "d"]
    with pytest.raises(RuntimeError, match="Expected 3D"):
        names(shared.results([batch("a"), [Request("no image", torch.zeros(1))]]))
    assert names(shared.results([batch("e")])) == ["e"]


def test_a_failure_of_the_learning_reaches_each_stream_once(shared: SharedLanes) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the device is lost"):
            names(shared.results([batch("breaks"), batch("b"), batch("c")]))
    assert shared._engine.failures == 2  # type: ignore[attr-defined]


def test_after_a_failure_of_the_learning_the_next_ones_are_learned(shared: SharedLanes) -> None:
    with pytest.raises(RuntimeError, match="the device is lost"):
        names(shared.results([batch("a"), batch("breaks"), batch("b")]))
    assert names(shared.results([batch("c"), batch("d")])) == ["c", "d"]


def test_settings_that_no_model_bears_end_the_start(demo_clip: pez.Clip) -> None:
    with pytest.raises(ValueError, match="no token is allowed"):
        SharedLanes(demo_clip, pez.PezSettings(blocklist=("*",)), 16)


def test_captions_are_scored_where_prompts_are(demo_clip: pez.Clip) -> None:
    shared = SharedLanes(demo_clip, METHOD, 16)
    texts = ["a red circle", "a blue square", "a green star"]
    captions = ["a red circle", None, "a green circle"]
    requests = [Request(text, text, caption, i) for i, (text, caption) in enumerate(zip(texts, captions, strict=True))]
    found = sorted((r for done in shared.results([requests]) for r in done), key=lambda result: result.handle)
    assert found[0].caption_similarity == pytest.approx(1.0)
    assert found[1].caption_similarity is None
    late = shared.score_captions(captions, torch.stack([result.direction for result in found]))
    assert late == [result.caption_similarity for result in found]
    with pytest.raises(RuntimeError):
        shared.score_captions(["a", "b"], torch.zeros(2, 3))
    assert all(thread.name != "lanes" for thread in threading.enumerate())  # it ends with the last caller


def test_a_caller_that_gives_up_leaves_nothing_in_work(demo_clip: pez.Clip) -> None:
    shared = SharedLanes(demo_clip, pez.PezSettings(tokens=4, steps=10**6), 16)

    def read() -> Iterator[list[Request]]:
        yield batch("a")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(shared.results(read()))
    assert shared.learning == 0
    assert all(thread.name != "lanes" for thread in threading.enumerate())


def test_seconds_of_shards_that_share_an_actor_add_up_to_its_own() -> None:
    now = 100.0
    clock = WorkClock(lambda: now)
    with clock.work() as first:
        now += 10
        with clock.work() as second:
            now += 4
            assert (first(), second()) == (12, 2)
        now += 1
        assert first() == 13
    now += 50
    with clock.work() as third:
        now += 3
        assert third() == 3
