"""The first shard of the demo gives the rows that were recorded, token for token, whatever is rebuilt around the method.

In double precision: in single, CPUs round differently, and after hundreds of steps some prompts are others.
"""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs import caption
from pipeline.sources.demo_shards import demo_shards

RECORDED = Path(__file__).parent
BEFORE_VERSION_3 = [
    "--swap-among",
    "all",
    "--token-weight",
    "0",
    "--steps",
    "500",
    "--swaps",
    "24",
    "--candidates",
    "32",
]

WIDE = ["--vocabulary", "full", "--untrained-tokens", "--restarts", "3", "--steps", "20", "--swaps", "8"]


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("recorded_rows.json", []),
        ("recorded_rows_7.json", [*WIDE, "--finalists", "3", "--token-weight", "0.5"]),  # as version 7 with many tokens
        ("recorded_rows_6.json", ["--restarts", "1", "--token-weight", "0.5"]),  # the defaults of version 6
        ("recorded_rows_2.json", BEFORE_VERSION_3),
    ],
    ids=["now", "version 7", "version 6", "version 2"],
)
def test_the_demo_gives_the_recorded_rows(
    file: str, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = sorted(demo_shards())[0]
    words = ["--input", shard, "--output", str(tmp_path / "out"), "--model", "demo", "--local", "--precision", "fp64"]
    monkeypatch.setattr(sys, "argv", ["jobs.caption", *words, *settings])
    with pytest.raises(SystemExit) as ended:
        caption.main()
    assert ended.value.code in (0, None)
    recorded = json.loads((RECORDED / file).read_text())
    [table] = (tmp_path / "out").glob("*.parquet")
    found = pq.read_table(table, columns=["key", "prompt", "token_ids", "similarity"]).to_pylist()
    assert [row | {"similarity": None} for row in found] == [row | {"similarity": None} for row in recorded]
    similarities = [row["similarity"] for row in recorded]
    assert [row["similarity"] for row in found] == pytest.approx(similarities, abs=1e-5)  # other CPUs round otherwise
