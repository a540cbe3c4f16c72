"""Actors that misbehave on purpose; in a module of their own, so that Ray's workers can import them.

It imports no torch, so that an actor is up in a second: tests start many.
"""

import os
import time
from pathlib import Path

import ray

from pipeline.rows import Row, ShardReport, report_of
from pipeline.sources.base import Unit


@ray.remote
class FaultyActor:
    """Does no captioning: a shard's name says what happens to it."""

    def __init__(self, folder: str, start_error: str | None = None) -> None:
        if start_error:
            raise ValueError(start_error)
        self.folder = Path(folder)

    def ready(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def run(self, shard: Unit) -> ShardReport:
        tries = self.folder / shard.stem
        with tries.open("a") as file:
            file.write("x")
        first = len(tries.read_text()) == 1
        if "slow" in shard.stem:
            time.sleep(1.5)
        if shard.stem.startswith("kills-always") or (shard.stem.startswith("kills-once") and first):
            os.kill(os.getpid(), 9)
        if shard.stem.startswith("hangs") and first:
            time.sleep(600)
        if shard.stem.startswith("bad"):
            raise ValueError("this shard is\nbad")
        if shard.stem.startswith("hopeless"):
            error = ValueError("not a tar: a picture")
            error.permanent = True  # type: ignore[attr-defined] # another try would end as this one
            raise error
        return report_of(shard, [Row("k", shard.url, "ok", similarity=0.5)], 0.1, "f")

    def progress(self) -> None:
        pass
