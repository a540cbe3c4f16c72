"""`pez export` in this process, and outputs to export."""

import sys
from pathlib import Path
from typing import Any

import pytest
from gallery_outputs import row, write_output, write_tar

from jobs import command, export
from pipeline.table import PromptTable


def run_export(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object, local: bool = True
) -> tuple[int, str, str]:
    """Status, output, errors."""
    monkeypatch.setattr(sys, "argv", ["pez", *map(str, words), *(["--local"] if local else [])])
    with pytest.raises(SystemExit) as ended:
        command.run(export.ExportJob, export.__doc__, export.export, "pez export")
    assert isinstance(ended.value.code, int)
    return ended.value.code, *capsys.readouterr()


def write_shards(folder: Path, units: int = 2, images: int = 6, **values: Any) -> PromptTable:
    """`folder/out`, with the prompts of images in `folder/in/shard-0.tar` and so on; every last row has no prompt."""
    shards = {}
    for unit in range(units):
        keys = [f"{unit}{index:03d}" for index in range(images)]
        write_tar(folder / "in" / f"shard-{unit}.tar", keys)
        url = str(folder / "in" / f"shard-{unit}.tar")
        rows = [row(i, key, url, **values) for i, key in enumerate(keys)]
        bad = {"status": "bad_image", "error_message": "cut short", "prompt": None, "similarity": None}
        shards[url] = [*rows[:-1], row(images, keys[-1], url, **bad)]
    return write_output(folder / "out", shards)
