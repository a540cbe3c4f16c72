"""Many groups over many shards, with an actor killed in each stage: every group once, every key accounted for, flat memory.

    PEZ_SCALE_GROUPS=100000 PEZ_SCALE_GROUP_SHARDS=200 python -m pytest -m slow -s tests/pipeline/test_group_scale.py

prints the figures of BENCHMARKS.md.
"""

import contextlib
import os
import time
from collections import Counter, defaultdict
from pathlib import Path
from statistics import mean, median

import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image
from running import RunningJob
from samples_on_disk import MakeTar, encoded

GROUPS = int(os.environ.get("PEZ_SCALE_GROUPS", "16000"))  # fewer end before the memory of an actor has settled
SHARDS = int(os.environ.get("PEZ_SCALE_GROUP_SHARDS", "20"))


class Watch:
    """The memory of a job's actors, in MB, by process; at most once a second if there are many groups."""

    def __init__(self, job: RunningJob) -> None:
        self.job, self.seen, self.next = job, defaultdict[int, list[float]](list), 0.0

    def look(self) -> None:
        if time.monotonic() < self.next:
            return
        for actor in self.job.actors():
            with contextlib.suppress(psutil.Error):
                self.seen[actor.pid].append(actor.memory_info().rss / 2**20)
        self.next = time.monotonic() + (1.0 if GROUPS > 20_000 else 0.1)

    def end_stage(self) -> list[float]:
        """The memory of the actor that was seen most often: its median in each eighth of its life, the highest last."""
        longest = max(self.seen.values(), key=len)
        eighth = max(1, len(longest) // 8)
        self.seen.clear()
        return [*(median(longest[n * eighth : (n + 1) * eighth] or longest) for n in range(8)), max(longest)]


def drift(memory: list[float]) -> float:
    """How far memory in the last quarter of an actor's life is above that in the one before.

    In its first half it loads the model, and its buffers grow to their size.
    """
    return mean(memory[6:8]) - mean(memory[4:6])


@pytest.mark.slow
def test_among_kills_every_group_has_one_row_and_every_key_is_accounted_for(
    make_tar: MakeTar, images: list[Image.Image], tmp_path: Path
) -> None:
    """Each group has two images, in two shards; one image in a hundred is broken, and one in a hundred has no group."""
    data = [encoded(image) for image in images]
    members: list[list[tuple[str, bytes]]] = [[] for _ in range(SHARDS)]
    for g in range(GROUPS):
        for n, shard in enumerate((g % SHARDS, (g // SHARDS + g + 1) % SHARDS)):
            members[shard].append((f"g{g:07d}-{n}.png", b"broken" if (g, n) == (g // 100 * 100, 1) else data[g % 64]))
    for s, of_shard in enumerate(members):
        of_shard += [(f"none-{s}-{i}.png", data[i % 64]) for i in range(len(of_shard) // 100)]
        make_tar(f"in/{s:04d}.tar", of_shard)
    out = tmp_path / "out"
    method = ["--tokens", 2, "--steps", 1, "--swaps", 0]
    words = ["--input", tmp_path / "in", "--output", out, "--model", "demo", *method, "--actors", 2]
    words += ["--group-by", r"key:^g\d+", "--groups-per-unit", max(50, GROUPS // 100)]
    start, limit = time.monotonic(), 300 + GROUPS / 20
    with RunningJob(*words, log=tmp_path / "log") as job:
        watch = Watch(job)

        def embedded() -> int:
            watch.look()
            return len(list(out.glob("_embedded/*.json")))

        def learned() -> int:
            watch.look()
            return len(list(out.glob("groups-*.parquet")))

        job.wait_until(lambda: embedded() >= SHARDS // 4, limit)
        job.actors()[0].kill()
        job.wait_until(lambda: embedded() == SHARDS, limit)
        seconds_to_embed, embedding = time.monotonic() - start, watch.end_stage()
        job.wait_until(lambda: learned() >= 5, limit)
        job.actors()[0].kill()
        while job.process.poll() is None:
            learned()
            time.sleep(0.2)
        seconds, learning = time.monotonic() - start, watch.end_stage()
        assert job.wait() == 0, job.log.read_text()
        assert job.log.read_text().count("the actor died") >= 2
    rows = pq.read_table(out, columns=["group", "images", "status"]).to_pylist()
    assert sorted(row["group"] for row in rows) == [f"g{g:07d}" for g in range(GROUPS)]
    assert Counter(row["images"] for row in rows) == {1: GROUPS // 100, 2: GROUPS - GROUPS // 100}
    members_found = pq.read_table(out / "_members", columns=["key", "status"]).to_pylist()
    keys = [name.removesuffix(".png") for of_shard in members for name, _ in of_shard]
    assert sorted(row["key"] for row in members_found) == sorted(keys)
    assert Counter(row["status"] for row in members_found)["bad_image"] == GROUPS // 100
    assert (out / "_SUCCESS").exists()
    print(
        f"\n{GROUPS:,} groups, {len(keys):,} keys, {SHARDS} shards: "
        f"embedded in {seconds_to_embed:.0f} s, all in {seconds:.0f} s"
    )
    for stage, memory in (("embedding", embedding), ("learning", learning)):
        by_eighths = ", ".join(f"{mb:.0f}" for mb in memory[:8])
        print(f"MB of an actor by eighths of its time, {stage}: {by_eighths}; up to {memory[8]:.0f}")
    assert max(drift(embedding), drift(learning)) < 60
