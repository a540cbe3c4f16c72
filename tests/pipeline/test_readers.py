"""The output folder itself is a data set: the libraries that people load tables with read it as it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from pez.errors import UserError
from pipeline.folder import Bookkeeping
from pipeline.rows import Row
from pipeline.sources.base import Unit
from pipeline.table import PromptTable


def datasets_rows(folder: str, cache: str, **options: str) -> int:
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset(**({"path": folder} | options), cache_dir=cache)["train"].num_rows


def ray_rows(folder: str) -> int:
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray.data.read_parquet(folder).count()


def duckdb_rows(table: str) -> Any:
    counted = duckdb.sql(f"select count(*) from {table}")
    assert counted is not None
    return counted.fetchall()[0][0]


READERS: dict[str, Callable[[str], Any]] = {
    "pyarrow": lambda folder: pq.read_table(folder).num_rows,
    "pyarrow.dataset": lambda folder: pyarrow.dataset.dataset(folder).count_rows(),
    "pandas": lambda folder: len(pd.read_parquet(folder)),
    "duckdb": lambda folder: duckdb_rows(f"read_parquet('{folder}/')"),
    "duckdb glob": lambda folder: duckdb_rows(f"'{folder}/*.parquet'"),
    "polars glob": lambda folder: pl.read_parquet(f"{folder}/*.parquet").height,
    "datasets": lambda folder: datasets_rows(folder, f"{folder}-cache"),
    "datasets glob": lambda folder: datasets_rows(
        "parquet", f"{folder}-cache", data_files=f"{folder}/*.parquet"
    ),
}  # fmt: skip
EVERY_FILE: dict[str, Callable[[str], Any]] = {
    "polars": lambda folder: pl.read_parquet(f"{folder}/").height,
    "polars lazily": lambda folder: pl.scan_parquet(folder).collect().height,
    "datasets data_dir": lambda folder: datasets_rows("parquet", f"{folder}-cache", data_dir=folder),
}
"""those that take every file of a folder for a table"""


def write(folder: Path, bookkeeping: Bookkeeping | None) -> str:
    """A finished output of three shards."""
    table = PromptTable(str(folder), {"steps": 1}, bookkeeping)
    shards = [Unit(f"/in/{i:05d}.tar", f"{i:05d}") for i in range(3)]
    table.claim()
    table.record(shards)
    for shard in shards:
        rows = [Row(f"{shard.stem}-{i}", shard.url, "ok", prompt="a cat", similarity=0.5) for i in range(3)]
        table.publish(shard, [*rows, Row(f"{shard.stem}-bad", shard.url, "bad_image", "truncated")], 1.0)
    table.succeed(shards)
    return str(folder)


@pytest.mark.parametrize("reader", READERS)
def test_the_folder_is_read_as_it_is(tmp_path: Path, reader: str) -> None:
    assert READERS[reader](write(tmp_path / "out", None)) == 12


@pytest.mark.parametrize("reader", [*READERS, *EVERY_FILE])
def test_with_the_bookkeeping_beside_it_every_reader_reads_it(tmp_path: Path, reader: str) -> None:
    folder = write(tmp_path / "out", "beside")
    assert (READERS | EVERY_FILE)[reader](folder) == 12
    assert {path.suffix for path in Path(folder).iterdir()} == {".parquet"}


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("bookkeeping", ["inside", pytest.param("beside", marks=pytest.mark.slow)])
def test_ray_data_reads_the_folder(tmp_path: Path, bookkeeping: Bookkeeping) -> None:
    assert ray_rows(write(tmp_path / "out", bookkeeping)) == 12


def test_bookkeeping_stays_where_it_was_put(tmp_path: Path) -> None:
    folder = write(tmp_path / "out", "beside")
    assert (tmp_path / "out.pez" / "_SUCCESS").exists()
    found = PromptTable.written(folder)
    assert len(found.shards()) == 3
    assert found.divide(found.shards())[1] == []
    with pytest.raises(UserError, match="has its bookkeeping beside; omit --bookkeeping"):
        PromptTable(folder, {"steps": 1}, "inside").claim()
    with pytest.raises(UserError, match="has its bookkeeping inside"):
        PromptTable(write(tmp_path / "in", None), {"steps": 1}, "beside").claim()
