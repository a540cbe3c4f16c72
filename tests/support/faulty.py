"""Actors that misbehave on purpose; in a module of their own, so that Ray's workers can import them.

It imports no torch, so that an actor is up in a second: tests start many.
"""

import os
import time
from pathlib import Path
from typing import Any

import ray

from pipeline.rows import Row, ShardReport, report_of
from pipeline.run.tasks import Task


@ray.remote
class _FaultyActor:
    """Learns nothing: a unit's name says what happens to it."""

    def __init__(self, folder: str, start_error: str | None = None) -> None:
        if start_error:
            raise ValueError(start_error)
        self.folder = Path(folder)

    def ready(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def run(self, task: Task) -> ShardReport:
        unit = task.unit
        tries = self.folder / unit.stem
        with tries.open("a") as file:
            file.write("x")
        first = len(tries.read_text()) == 1
        if "slow" in unit.stem:
            time.sleep(1.5)
        if "waits" in unit.stem:  # until the test says so
            end = time.monotonic() + 120
            while not (self.folder / "go on").exists() and time.monotonic() < end:
                time.sleep(0.05)
        if unit.stem.startswith("kills-always") or (unit.stem.startswith("kills-once") and first):
            os.kill(os.getpid(), 9)
        if unit.stem.startswith("hangs") and first:
            time.sleep(600)
        if unit.stem.startswith("bad"):
            raise ValueError("this shard is\nbad")
        if unit.stem.startswith("hopeless"):
            error = ValueError("not a tar: a picture")
            error.permanent = True  # type: ignore[attr-defined] # another try would end as this one
            raise error
        return report_of(unit, [Row("k", unit.url, "ok", similarity=0.5)], 0.1, "f")

    def progress(self) -> None:
        pass


FaultyActor: Any = _FaultyActor
