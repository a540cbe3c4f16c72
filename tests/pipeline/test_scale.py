"""What does not grow: the driver with the shards, an actor with the bytes of its shard; and what a resume costs.

    PEZ_SCALE_SHARDS=100000 python -m pytest -m slow -s tests/pipeline/test_scale.py -k driver
    PEZ_SCALE_GIGABYTES=10 python -m pytest -m slow -s tests/pipeline/test_scale.py -k actor

print the figures of BENCHMARKS.md.
"""

import gc
import io
import os
import tarfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import fsspec
import psutil
import pytest
import trivial
from fsspec.spec import AbstractFileSystem
from PIL import Image
from ray import cloudpickle
from samples_on_disk import encoded
from trivial import SizeLearner, TrivialStage

import pez
from jobs.caption import CaptionJob, caption
from pipeline.settings import CaptionSettings, ClusterSettings
from pipeline.sources.base import Unit
from pipeline.stages.learn import Learner, describe, learn_unit
from pipeline.table import PromptTable

SHARDS = int(os.environ.get("PEZ_SCALE_SHARDS", "4000"))
GIGABYTES = float(os.environ.get("PEZ_SCALE_GIGABYTES", "1"))


class Memory:
    """This process's memory, looked at now and then, in MB."""

    def __init__(self, every: float = 0.2) -> None:
        gc.collect()
        self.process, self.every = psutil.Process(), every
        self.before = self.now
        self.seen = [self.before]
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def now(self) -> float:
        return self.process.memory_info().rss / 2**20

    @property
    def growth(self) -> float:
        """The most above what it was before."""
        return max(self.seen) - self.before

    @property
    def drift(self) -> float:
        """The last third above the one before it; what is allocated once comes in the first."""
        third = len(self.seen) // 3
        return median(self.seen[-third:]) - median(self.seen[third:-third])

    def __enter__(self) -> "Memory":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.ended.wait(self.every):
            self.seen.append(self.now)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_driver_stays_small_and_quick_over_many_shards_and_a_resume_reads_no_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real job with actors that caption nothing: braces, two listings, the loop, progress, the end."""

    monkeypatch.setattr("pipeline.stages.learn_stage.LearnStage", TrivialStage)
    cloudpickle.register_pickle_by_value(trivial)  # workers do not see the modules of tests
    out = tmp_path / "out"
    job = CaptionJob(
        output=str(out),
        input=(f"memory://shards/{{00000000..{SHARDS - 1:08d}}}.tar",),
        caption=CaptionSettings(model="demo"),
        cluster=ClusterSettings(actors=2),
    )
    with Memory() as memory:
        start, busy = time.monotonic(), time.process_time()
        assert caption(job) == 0
        seconds, busy = time.monotonic() - start, time.process_time() - busy
    assert len(list(out.glob("*.parquet"))) == len(list(out.glob("_reports/*.json"))) == SHARDS

    reads: list[str] = []
    read_json = PromptTable.read_json

    def counted(table: PromptTable, name: str) -> dict[str, Any] | None:
        reads.append(name)
        return read_json(table, name)

    monkeypatch.setattr(PromptTable, "read_json", counted)
    with Memory() as resumed:
        start = time.monotonic()
        assert caption(job) == 0
        seconds_to_resume = time.monotonic() - start
    assert sum(name.startswith("_reports/") for name in reads) <= 2  # of the shard that is shown at the end
    start = time.monotonic()
    table = PromptTable(str(out), describe(job.caption, job.method, "cpu"))
    shards = [Unit(f"memory://shards/{i:08d}.tar", f"{i:08d}") for i in range(SHARDS)]
    assert table.divide(shards, retry_failed=True)[1] == []
    seconds_to_read = time.monotonic() - start
    print(
        f"\n{SHARDS:,} shards: {seconds / SHARDS * 1e3:.2f} ms a shard, {busy / SHARDS * 1e3:.2f} ms of them computing in "
        f"the driver, which grew by {memory.growth:.0f} MB over "
        f"{memory.before:.0f} MB; resume {seconds_to_resume:.1f} s, {resumed.growth:.0f} MB; "
        f"--retry-failed reads all reports in {seconds_to_read:.1f} s"
    )
    assert busy / SHARDS < 0.01
    assert seconds / SHARDS < 0.2
    assert memory.growth < 60 + SHARDS / 500  # MB; 2 KB a shard
    assert seconds_to_resume < 10 + SHARDS / 500


class GeneratedTars(AbstractFileSystem):
    """generated://MEMBERS.tar is a tar of so many images that is never anywhere as a whole."""

    protocol = "generated"
    image = b""

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        return io.BufferedReader(_Generated(int(Path(path).stem), self.image), 2**20)


class _Generated(io.RawIOBase):
    def __init__(self, members: int, image: bytes) -> None:
        self.pieces = self._make(members, image)
        self.left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.left:
            self.left = memoryview(next(self.pieces, b""))
        count = min(len(buffer), len(self.left))
        buffer[:count] = self.left[:count]
        self.left = self.left[count:]
        return count

    def _make(self, members: int, image: bytes) -> Any:
        info = tarfile.TarInfo()
        info.size = len(image)
        padded = image + bytes(-len(image) % tarfile.BLOCKSIZE)
        for i in range(members):
            info.name = f"{i:07d}.bmp"
            yield info.tobuf()
            yield padded
        yield bytes(2 * tarfile.BLOCKSIZE)


@pytest.fixture
def picture() -> bytes:
    """3 MB that are quickly decoded."""
    return encoded(Image.effect_noise((1200, 900), 80).convert("RGB"), "BMP")


def generated(image: bytes, gigabytes: float) -> Unit:
    fsspec.register_implementation("generated", GeneratedTars, clobber=True)
    GeneratedTars.image = image
    members = round(gigabytes * 2**30 / len(image))
    return Unit(f"generated://{members}.tar", f"{members}")


def test_a_shard_is_streamed_and_never_held(tmp_path: Path, picture: bytes) -> None:
    """By a learner that decodes and does no more."""
    settings = CaptionSettings(model="demo", lanes=16)
    shard = generated(picture, 0.3)
    table = PromptTable(str(tmp_path), describe(settings, pez.PezSettings(), "cpu"))
    with Memory(0.05) as memory:
        report = learn_unit(shard, SizeLearner(settings), table)
    assert report.ok == int(shard.stem)
    assert memory.growth < 75


@pytest.mark.slow
def test_an_actor_does_not_grow_with_the_bytes_of_its_shard(tmp_path: Path, picture: bytes) -> None:
    """The real learner with the demo's CLIP and one step."""
    settings, method = CaptionSettings(model="demo", lanes=16), pez.PezSettings(tokens=4, steps=1, swaps=0)
    table = PromptTable(str(tmp_path), describe(settings, method, "cpu"))
    learner = Learner(settings, method)
    shard = generated(picture, GIGABYTES)
    with Memory() as memory:
        start = time.monotonic()
        report = learn_unit(shard, learner, table)
        seconds = time.monotonic() - start
    print(
        f"\n{GIGABYTES:g} GB in {report.ok:,} pictures of {len(picture) / 1e6:.1f} MB: {seconds:.0f} s, "
        f"grew by {memory.growth:.0f} MB over {memory.before:.0f} MB, by {memory.drift:.0f} MB in the last third"
    )
    assert report.ok == int(shard.stem)
    assert memory.growth < 400  # pictures of which the decoders are ahead
    assert memory.drift < 50
