"""An output folder with a few prompts, for tests of verification."""

import dataclasses
from typing import Any

import pyarrow.parquet as pq
import pytest

import pez
from jobs import caption, command, verify
from pipeline.rows import Row
from pipeline.settings import CaptionSettings, VerifySettings
from pipeline.sources.base import Unit
from pipeline.stages.learn import describe
from pipeline.stages.verification import verified_table
from pipeline.stages.verified_table import VerifiedTable
from pipeline.table import PromptTable

SETTINGS = VerifySettings(verify="demo", verify_steps=1, verify_images=2)
CAPTIONED = describe(CaptionSettings(model="demo", lanes=16), pez.PezSettings(tokens=6, steps=20), "cpu")
PROMPTS = ["yellow triangle wavy", "blue square", "pink heart top left", "purple ring"]


def publish(table: PromptTable, shard: Unit, prompts: list[str]) -> None:
    rows = [Row(f"{i:03d}", shard.url, "ok", prompt=p, similarity=0.5, seed=0) for i, p in enumerate(prompts)]
    rows.insert(2, Row("bad", shard.url, "bad_image", "cannot decode the image"))
    table.publish(shard, rows, 1.0)


def verified(table: PromptTable, **changes: Any) -> VerifiedTable:
    return verified_table(table, dataclasses.replace(SETTINGS, **changes), "cpu")


def rows_of(table: PromptTable, stem: str = "a") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(f"{table.url}/{stem}.parquet").to_pylist()
    return rows


def run_job(job: str) -> int:
    if job == "verify":
        with pytest.raises(SystemExit) as ended:
            command.run(verify.VerifyJob, None, verify.verify)
    else:
        with pytest.raises(SystemExit) as ended:
            command.run(caption.CaptionJob, None, caption.caption)
    return int(ended.value.code or 0)
