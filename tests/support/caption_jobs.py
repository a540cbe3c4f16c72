"""`pez caption` in this process, as tests of its inputs run it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs import caption, command

Run = Callable[..., tuple[int, str, str]]
"""run(words, on_ray=False) -> status, output, errors"""

FAST = ("--model", "demo", "--tokens", 3, "--steps", 10, "--swaps", 1, "--local")


def run_caption(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: object, on_ray: bool = False) -> tuple[int, str, str]:
        fast = [word for word in FAST if word != "--local" or not on_ray]
        monkeypatch.setattr(sys, "argv", ["pez", *map(str, (*words, *fast))])
        with pytest.raises(SystemExit) as ended:
            command.run(caption.CaptionJob, caption.__doc__, caption.caption, "pez caption")
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return run


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of an output by key."""
    rows = pq.read_table(folder).to_pylist()
    found = {row["key"]: row for row in rows}
    assert len(found) == len(rows), "a key has one row"
    return found
