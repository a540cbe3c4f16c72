"""Parquet files of outputs and inputs: no thread of PyArrow touches a file of Python, and damage is told from failing reads."""

import io
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from running import ROOT

from pez.errors import UserError
from pipeline.folder import DamagedError
from pipeline.parquet import batches_of, is_damage, opened, rows_between, table_of
from pipeline.rows import Row
from pipeline.sources.base import Unit, UnitError
from pipeline.sources.parquet_rows import read_parquet
from pipeline.table import PromptTable

ROWS = 4000


class Watched(io.BytesIO):
    """A file that notes which threads read it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.readers = set[threading.Thread]()

    def read(self, size: int | None = -1, /) -> bytes:
        self.readers.add(threading.current_thread())
        return super().read(size)


@pytest.fixture
def table() -> pa.Table:
    return pa.table(
        {"number": range(ROWS), "text": [f"row {i}" for i in range(ROWS)], "odd": [i % 2 for i in range(ROWS)]}
    )


@pytest.fixture
def file(table: pa.Table) -> Watched:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=1000)
    return Watched(buffer.getvalue())


READS: dict[str, Callable[[Watched], Any]] = {
    "schema": lambda file: opened(file).schema_arrow.names,
    "table": lambda file: table_of(file).to_pydict(),
    "batches": lambda file: [b.to_pydict() for b in batches_of(opened(file), 300, ["text", "number"])],
    "buffered": lambda file: [b.to_pydict() for b in batches_of(opened(file, buffer_size=4096), 300, ["text"])],
    "rows": lambda file: rows_between(opened(file), "number", 900, 2100),
}


@pytest.mark.parametrize("kind", READS)
def test_only_the_calling_thread_reads_a_file(file: Watched, kind: str) -> None:
    assert READS[kind](file)
    assert file.readers == {threading.current_thread()}


def test_a_usual_read_of_pyarrow_is_done_by_threads_of_its_own(file: Watched) -> None:
    pq.read_table(file)
    assert len(file.readers) > 1  # or `Watched` would see nothing


def test_the_rows_are_those_of_the_table(table: pa.Table, file: Watched) -> None:
    assert table_of(file).equals(table)
    batches = list(batches_of(opened(file), 300, ["text", "odd"]))
    assert max(map(len, batches)) <= 300
    assert pa.Table.from_batches(batches).equals(table.select(["text", "odd"]))


@pytest.mark.parametrize(
    ("first", "last"), [(0, ROWS), (900, 2100), (1000, 1999), (1999, 1999), (-5, -1), (ROWS, ROWS + 5)]
)
@pytest.mark.parametrize("statistics", [True, False])
def test_the_rows_between_two_values(table: pa.Table, first: int, last: int, statistics: bool) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=1000, write_statistics=statistics)
    expected = [row for row in table.to_pylist() if first <= row["number"] <= last]
    assert rows_between(opened(buffer), "number", first, last) == expected


def test_row_groups_without_such_rows_are_not_read(file: Watched) -> None:
    damaged = bytearray(file.getvalue())
    column = pq.read_metadata(file).row_group(0).column(1)
    at = column.dictionary_page_offset or column.data_page_offset
    damaged[at : at + column.total_compressed_size] = bytes(column.total_compressed_size)
    assert len(rows_between(opened(io.BytesIO(damaged)), "number", 1500, 1600)) == 101
    with pytest.raises((OSError, pa.ArrowException)) as found:  # whichever PyArrow meets first
        rows_between(opened(io.BytesIO(damaged)), "number", 500, 600)
    assert is_damage(found.value)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder with one table."""
    written = PromptTable(str(tmp_path / "out"), {"kind": "test"})
    written.write_rows("a.parquet", [Row(f"{i:05}", "a.tar", "ok", f"red square number {i}") for i in range(500)])
    return tmp_path / "out"


def in_the_footer(data: bytes) -> bytes:
    return data[:-200] + bytes(100) + data[-100:]


def in_a_page(data: bytes) -> bytes:
    column = pq.read_metadata(io.BytesIO(data)).row_group(0).column(0)
    at = (column.dictionary_page_offset or column.data_page_offset) + 20
    return data[:at] + bytes(b ^ 90 for b in data[at : at + 60]) + data[at + 60 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "footer": in_the_footer,
    "no footer": lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1",
    "page": in_a_page,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_table_is_named(out: Path, kind: str) -> None:
    file = out / "a.parquet"
    file.write_bytes(DAMAGE[kind](file.read_bytes()))
    table = PromptTable(str(out), {"kind": "test"})
    with pytest.raises(DamagedError, match="out/a.parquet is damaged; remove it and re-run the command to recreate it"):
        table.read(Unit("a.tar", "a"))
    with pytest.raises(DamagedError, match="out/a.parquet is damaged"):
        table.read_rows("a.parquet")
    assert (table.read_metadata("a.parquet") is None) == (kind != "page")  # with pages, only the rows are lost


@pytest.mark.parametrize("kind", [kind for kind in DAMAGE if kind != "page"])
def test_a_damaged_input_is_named(out: Path, kind: str) -> None:
    file = out / "a.parquet"
    file.write_bytes(DAMAGE[kind](file.read_bytes()))
    with pytest.raises(UnitError, match="a.parquet is a Parquet file that is damaged or truncated"):
        list(read_parquet(Unit(str(file), "a"), ["prompt"]))


def test_a_table_that_cannot_be_read_is_not_called_damaged(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = PromptTable(str(out), {"kind": "test"})

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(table.fs, "open", lambda path, mode: Failing((out / "a.parquet").read_bytes()))
    with pytest.raises(UserError, match="cannot read .*a.parquet: .*Connection reset by peer") as found:
        table.read(Unit("a.tar", "a"))
    assert not isinstance(found.value, DamagedError)
    with pytest.raises(UserError, match="Connection reset by peer"):  # not None: the shard would be learned again
        table.read_metadata("a.parquet")


def test_other_files_do_not_read_with_threads_of_pyarrow() -> None:
    reads = re.compile(
        r"\bpq\.(ParquetFile\(|read_table|read_pandas|read_schema|ParquetDataset)|pyarrow\.dataset|pa\.dataset"
    )
    files = [file for package in ("pipeline", "jobs") for file in (ROOT / package).rglob("*.py")]
    assert [file.relative_to(ROOT).as_posix() for file in files if reads.search(file.read_text())] == [
        "pipeline/parquet.py"
    ]
