"""Two minutes in which actors are killed and the object store fails now and then."""

import contextlib
import io
import random
import tarfile
import time
from collections import Counter
from pathlib import Path

import fsspec
import psutil
import pyarrow.parquet as pq
import pytest
from object_store import ENVIRONMENT, Fault, Request, object_store
from PIL import Image
from running import RunningJob
from samples_on_disk import encoded

import pez
from pipeline.run.serial import run_serially
from pipeline.run.tasks import tasks_of
from pipeline.settings import CaptionSettings
from pipeline.sources.inputs import expand_inputs
from pipeline.stages.learn import Learner, describe
from pipeline.stages.learn_stage import LearnWorker
from pipeline.table import PromptTable

SHARDS = 200
METHOD = pez.PezSettings(tokens=6, steps=40, swaps=8)


def one_picture(key: str, image: Image.Image) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        data = encoded(image)
        info = tarfile.TarInfo(f"{key}.png")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.mark.slow
def test_a_job_among_kills_and_failing_requests_ends_with_every_key_once(
    images: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(0)
    failing = random.Random(1)

    def fault(_: Request) -> Fault | None:
        return failing.choice(["error", "busy", "slow", "cut"]) if failing.random() < 0.05 else None

    with object_store() as store:
        environment = {**ENVIRONMENT, "AWS_ENDPOINT_URL": store.url}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        fs = fsspec.filesystem("s3", use_listings_cache=False)
        fs.mkdir("chaos")
        keys = [f"{i:03d}" for i in range(SHARDS)]
        for i, key in enumerate(keys):
            fs.pipe_file(f"chaos/in/{key}.tar", one_picture(key, images[i % len(images)]))

        store.fault = fault
        method = ["--tokens", METHOD.tokens, "--steps", METHOD.steps, "--swaps", METHOD.swaps]
        words = ["--input", "s3://chaos/in/{000..199}.tar", "--output", "s3://chaos/out", "--model", "demo", *method]
        kills = 0
        with RunningJob(*words, "--actors", 2, "--attempts", 20, log=tmp_path / "log") as job:
            job.wait_until(lambda: store.asked("PUT", ".parquet"))
            end = time.monotonic() + 120
            while time.monotonic() < end and job.process.poll() is None:
                written = len(store.asked("PUT", ".parquet"))
                if actors := job.actors():
                    with contextlib.suppress(psutil.NoSuchProcess):
                        dice.choice(actors).kill()
                        kills += 1
                time.sleep(dice.uniform(4, 8))
                # Where actors take longer to start than to be killed, nothing would ever be done.
                while len(store.asked("PUT", ".parquet")) == written and job.process.poll() is None:
                    time.sleep(0.2)
            assert job.wait(900) == 0, job.log.read_text()
        store.fault = lambda _: None

        assert kills >= 3
        assert fs.exists("chaos/out/_SUCCESS")
        tables = {path.rsplit("/", 1)[1]: fs.cat_file(path) for path in fs.glob("chaos/out/*.parquet")}
        assert sorted(tables) == [f"{key}.parquet" for key in keys]
        rows = [row for data in tables.values() for row in pq.read_table(io.BytesIO(data)).to_pylist()]
        assert Counter(row["key"] for row in rows) == Counter(keys)
        assert {row["status"] for row in rows} == {"ok"}

        settings = CaptionSettings(model="demo")
        whole = PromptTable(str(tmp_path / "whole"), describe(settings, METHOD, "cpu"))
        some = expand_inputs(["s3://chaos/in/{000..199..20}.tar"])
        worker = LearnWorker(Learner(settings, METHOD), whole)
        assert run_serially(tasks_of(some), worker, lambda _: None) == {}
        for shard in some:  # a sample of them, to the byte
            assert (tmp_path / "whole" / f"{shard.stem}.parquet").read_bytes() == tables[f"{shard.stem}.parquet"]
