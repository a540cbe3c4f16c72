"""A demo verifier, and a shard with three prompts to verify."""

from pathlib import Path

import pytest
from PIL import Image
from samples_on_disk import MakeTar, encoded
from verified_outputs import CAPTIONED, PROMPTS, SETTINGS, publish

from pipeline.sources.base import Unit
from pipeline.stages.verify import Verifier
from pipeline.table import PromptTable


@pytest.fixture(scope="module")
def verifier() -> Verifier:
    return Verifier(SETTINGS, "demo")


@pytest.fixture
def table(tmp_path: Path) -> PromptTable:
    table = PromptTable(str(tmp_path / "out"), CAPTIONED)
    table.claim()
    return table


@pytest.fixture
def shard(make_tar: MakeTar, images: list[Image.Image], table: PromptTable) -> Unit:
    """Three images with prompts, and a row without a prompt between them."""
    members = [(f"{i:03d}.png", encoded(images[i])) for i in range(3)]
    members.insert(2, ("bad.jpg", b"junk"))
    shard = Unit(make_tar("in/a.tar", members), "a")
    publish(table, shard, PROMPTS[:3])
    return shard
