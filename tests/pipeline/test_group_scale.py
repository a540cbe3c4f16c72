"""Many groups over many shards, with an actor killed in each stage: every group once, every key accounted for, flat memory.

    PEZ_SCALE_GROUPS=100000 PEZ_SCALE_GROUP_SHARDS=200 python -m pytest -m slow -s tests/pipeline/test_group_scale.py

prints the figures of BENCHMARKS.md.
"""

import contextlib
import os
import time
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median

import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image
from running import RunningJob
from samples_on_disk import MakeTar, encoded

GROUPS = int(os.environ.get("PEZ_SCALE_GROUPS", "16000"))  # fewer end before the memory of an actor has settled
SHARDS = int(os.environ.get("PEZ_SCALE_GROUP_SHARDS", "20"))


class Watch:
    """The memory of a job's actors, in MB, by process."""

    def __init__(self, job: RunningJob) -> None:
        self.job, self.seen = job, defaultdict[int, list[float]](list)

    def __call__(self) -> bool:
        """Look; False, so that `wait_until` goes on."""
        for actor in self.job.actors():
            with contextlib.suppress(psutil.Error):
                self.seen[actor.pid].append(actor.memory_info().rss / 2**20)
        return False

    def end_stage(self) -> tuple[float, float]:
        """The highest memory of an actor, and how far the one seen most often was in its last quarter above the one before.

        In its first half it loads the model, and its buffers grow to their size.
        """
        longest = max(self.seen.values(), key=len)
        quarter = len(longest) // 4
        drift = median(longest[-quarter:]) - median(longest[-2 * quarter : -quarter]) if quarter else 0.0
        highest = max(value for values in self.seen.values() for value in values)
        self.seen.clear()
        return highest, drift


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
    start = time.monotonic()
    with RunningJob(*words, log=tmp_path / "log") as job:
        watch = Watch(job)

        def embedded() -> int:
            watch()
            return len(list(out.glob("_embedded/*.json")))

        def learned() -> int:
            watch()
            return len(list(out.glob("groups-*.parquet")))

        job.wait_until(lambda: embedded() >= SHARDS // 4)
        job.actors()[0].kill()
        job.wait_until(lambda: embedded() == SHARDS)
        seconds_to_embed, embedding = time.monotonic() - start, watch.end_stage()
        job.wait_until(lambda: learned() >= 5)
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
        f"embedded in {seconds_to_embed:.0f} s, all in {seconds:.0f} s; "
        f"actors up to {embedding[0]:.0f} MB embedding ({embedding[1]:+.0f} MB in the last quarter) and {learning[0]:.0f} MB "
        f"learning ({learning[1]:+.0f} MB)"
    )
    assert max(embedding[1], learning[1]) < 60
