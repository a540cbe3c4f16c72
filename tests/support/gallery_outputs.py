"""Outputs and their galleries, as tests of them need: rows that were not learned, images that are real."""

import io
import random
import shutil
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from samples_on_disk import encoded

from jobs import command, gallery
from pipeline.rows import Row
from pipeline.sources.base import Unit
from pipeline.table import PromptTable

SETTINGS = {
    "version": 2,
    "model": {"model": "demo"},
    "method": {"steps": 20},
    "source": {},
    "engine": {"device": "cpu"},
}


def colour(index: int) -> tuple[int, int, int]:
    """Of the image of a row."""
    return index * 37 % 256, index * 91 % 256, index * 53 % 256


def write_tar(path: Path, keys: list[str], size: tuple[int, int] = (400, 300)) -> None:
    """A tar with an image of one colour for each key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for index, key in enumerate(keys):
            data = encoded(Image.new("RGB", size, colour(index)))
            info = tarfile.TarInfo(f"{key}.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def row(index: int, key: str, shard: str, **values: Any) -> Row:
    """A row with scores that depend on its index."""
    random_ = random.Random(index)
    usual: dict[str, Any] = {
        "status": "ok",
        "width": 400,
        "height": 300,
        "caption": f"caption {index}",
        "prompt": f"prompt {random_.choice(['red', 'green', 'blue'])} {index}",
        "similarity": random_.uniform(0.1, 0.5),
        "token_similarity": 0.4,
        "caption_similarity": random_.uniform(0.1, 0.4),
        "steps": 20,
        "seed": 0,
        "model": "demo",
    }
    return Row(key, shard, **{**usual, **values})


def write_output(folder: Path, shards: dict[str, list[Row]], **report: Any) -> PromptTable:
    """An output with rows by the path of their tar."""
    table = PromptTable(str(folder), SETTINGS)
    table.claim()
    for shard, rows in shards.items():
        unit = Unit(shard, Path(shard).stem)
        table.record([unit])
        table.publish(unit, rows, 2.0, **report)
    return table


def run_gallery(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str, str]:
    """`pez gallery` in this process: status, output, errors."""
    monkeypatch.setattr(sys, "argv", ["pez", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        command.run(gallery.GalleryJob, gallery.__doc__, gallery.gallery, "pez gallery")
    assert isinstance(ended.value.code, int)
    return ended.value.code, *capsys.readouterr()


@contextmanager
def browser() -> Iterator[Any]:
    """Headless Chromium, or a skipped test that says why."""
    path = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if path is None:
        pytest.skip("there is no chromium on this machine: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[test]' has playwright")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield started
        finally:
            started.close()
