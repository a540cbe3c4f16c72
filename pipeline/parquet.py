"""Parquet files read through file objects of Python, only in the calling thread.

PyArrow's own threads may hold such an object a little longer than the read. If Python has ended by then, the process aborts
although its work is done, in 87 of 300 runs on a busy machine (EXPERIMENTS.md), or hangs (apache/arrow issues 34314 and 50482).
"""

from collections.abc import Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq


def opened(file: IO[bytes], **options: Any) -> pq.ParquetFile:
    """Open a Parquet file; its metadata is read.

    Args:
        options: arguments of pyarrow's ParquetFile, except `pre_buffer`.

    Raises:
        Errors for which `is_damage` is true, and those of reading `file`.
    """
    return pq.ParquetFile(file, pre_buffer=False, **options)


def table_of(file: IO[bytes]) -> pa.Table:
    """All columns and rows. Raises as `opened` does."""
    return opened(file).read(use_threads=False)


def batches_of(file: pq.ParquetFile, size: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Columns of an opened file, at most `size` rows at a time. Raises as `opened` does."""
    yield from file.iter_batches(size, columns=list(columns), use_threads=False)


def rows_between(file: pq.ParquetFile, column: str, first: Any, last: Any) -> list[dict[str, Any]]:
    """The rows whose `column` is in [first, last]; row groups without any, by their statistics, are not read.

    Raises as `opened` does.
    """
    place = file.schema_arrow.get_field_index(column)
    found = list[dict[str, Any]]()
    for number in range(file.num_row_groups):
        bounds = file.metadata.row_group(number).column(place).statistics
        if bounds is None or not bounds.has_min_max or (bounds.min <= last and first <= bounds.max):
            rows = file.read_row_group(number, use_threads=False).to_pylist()
            found += (row for row in rows if first <= row[column] <= last)
    return found


def is_damage(error: BaseException) -> bool:
    """Whether PyArrow has found the contents of a file damaged; otherwise it could not be read.

    Damaged pages and footers are plain OSErrors without a number, unlike errors of files and stores.
    """
    return isinstance(error, pa.ArrowException) or (type(error) is OSError and error.errno is None)
