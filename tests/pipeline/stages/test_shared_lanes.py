"""Shards that share lanes: the rows of one after the other, and each fails alone."""

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import pez
from pez.engine import Learned, Task
from pez.prompt import Prompt
from pipeline.settings import CaptionSettings
from pipeline.sources.shards import Shard
from pipeline.stages.lanes import Result, SharedLanes, WorkClock
from pipeline.stages.learn import Captioner

SETTINGS, METHOD = CaptionSettings(model="demo", lanes=16), pez.PezSettings(tokens=4, steps=5, swaps=5)


def test_shards_that_share_lanes_have_the_rows_of_one_after_the_other(scene_tars: list[str], tmp_path: Path) -> None:
    shards = [Shard(url, Path(url).stem) for url in scene_tars]

    def rows(captioner: Captioner, shard: Shard) -> list:
        return sorted(captioner.caption(shard, captioner.items(shard, Counter())), key=lambda found: found[0])

    serial = Captioner(SETTINGS, METHOD)
    one_after_the_other = [rows(serial, shard) for shard in shards]
    shared = Captioner(SETTINGS, METHOD, shared=True)
    with ThreadPoolExecutor(3) as threads:
        for _ in range(2):  # the lanes are there for the next as well
            assert list(threads.map(lambda shard: rows(shared, shard), shards)) == one_after_the_other
    assert shared.progress.images == 0


def doubled(tasks: Iterable[Task | None]) -> Iterator[list[Result]]:
    """Gives two lanes' worth of tasks back together, or what there is when no more are ready."""
    busy: list[Task] = []
    for task in tasks:
        if task is not None:
            if task.key == "breaks":
                raise RuntimeError("the device is lost")
            busy.append(task)
        if len(busy) == 2 or (task is None and busy):
            yield [(Learned(t, torch.zeros(1), 0.0, 1), Prompt(t.key, (), 0.0, 0.0, 1)) for t in busy]
            busy = []


def lanes() -> SharedLanes[str]:
    def tasks_of(batch: list[str]) -> list[Task]:
        if "no features" in batch:
            raise ValueError("no features")
        return [Task(name, torch.zeros(1)) for name in batch]

    return SharedLanes(tasks_of, doubled, ahead=2)


def names(found: Iterator[list[Result]]) -> list[str]:
    return sorted(prompt.text for ended in found for _, prompt in ended)


def test_each_stream_gets_its_own_results() -> None:
    shared = lanes()
    streams = [[[f"{s}-{i}-{j}" for j in range(3)] for i in range(40)] for s in range(6)]
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda stream: names(shared.results(stream)), streams))
    assert found == [sorted(name for batch in stream for name in batch) for stream in streams]


def test_a_stream_without_images_ends() -> None:
    assert names(lanes().results([])) == []


def test_a_stream_that_cannot_be_read_on_fails_alone() -> None:
    shared = lanes()

    def cut() -> Iterator[list[str]]:
        yield ["a", "b"]
        raise OSError("cut short")

    with ThreadPoolExecutor(2) as threads:
        bad = threads.submit(lambda: names(shared.results(cut())))
        good = threads.submit(lambda: names(shared.results([["c"], ["d"]])))
        with pytest.raises(OSError, match="cut short"):
            bad.result()
        assert good.result() == ["c", "d"]
    with pytest.raises(ValueError, match="no features"):
        names(shared.results([["a"], ["no features"]]))
    assert names(shared.results([["e"]])) == ["e"]


def test_settings_that_no_model_bears_fail_each_stream_once() -> None:
    asked = []

    def refuse(_: Iterable[Task | None]) -> Iterator[list[Result]]:
        asked.append(1)
        raise ValueError("no token is allowed")

    shared = SharedLanes(lambda batch: [Task(name, torch.zeros(1)) for name in batch], refuse, ahead=1)
    for _ in range(2):
        with pytest.raises(ValueError, match="no token is allowed"):
            names(shared.results([["a"], ["b"], ["c"]]))
    assert len(asked) == 2


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


def test_after_a_failure_of_the_learning_the_next_ones_are_learned() -> None:
    shared = lanes()
    with pytest.raises(RuntimeError, match="the device is lost"):
        names(shared.results([["a"], ["breaks"], ["b"]]))
    assert names(shared.results([["c"], ["d"]])) == ["c", "d"]
