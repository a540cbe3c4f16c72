"""Rows of a Parquet file, read in batches, so that memory does not grow with the file."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.parquet import batches_of, is_damage, opened
from pipeline.sources.base import Unit, UnitError
from pipeline.sources.stores import listing_options, unreadable, words_of
from pipeline.sources.table_rows import BadValue, TableRow

_BATCH = 1024  # rows
_NAMED = 20  # maximum number of columns listed in an error


def read_parquet(unit: Unit, columns: Sequence[str]) -> Iterator[TableRow]:
    """Stream the rows of a file.

    Args:
        columns: the column of texts, then that of keys, if any.

    Raises:
        UnitError: not readable, damaged or truncated, or without these columns as texts (keys may be integers).
    """
    with open_parquet(unit) as file:
        _expect_columns(unit, file.schema_arrow, columns)
        yield from rows_in(file, unit, columns, _BATCH)


def rows_in(file: pq.ParquetFile, unit: Unit, columns: Sequence[str], batch_size: int) -> Iterator[TableRow]:
    """Stream columns of an open file; a column may be named twice.

    Raises:
        UnitError: the file is damaged.
    """
    try:
        for batch in batches_of(file, batch_size, list(dict.fromkeys(columns))):
            cells = [cells_of(batch.column(batch.schema.get_field_index(name))) for name in columns]
            for row in zip(*cells, strict=True):
                yield TableRow(row)
    except (OSError, pa.ArrowException) as error:
        raise UnitError(f"{unit.url} is damaged ({words_of(error, unit.source)}); make or copy it again") from error


@contextlib.contextmanager
def open_parquet(unit: Unit, **options: Any) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file.

    Args:
        options: arguments of pyarrow's ParquetFile, except `pre_buffer`.

    Raises:
        UnitError: not readable, damaged or truncated.
    """
    with contextlib.ExitStack() as stack:
        try:
            fs, path = fsspec.core.url_to_fs(unit.source, **listing_options(unit.source))
            file = stack.enter_context(fs.open(path, "rb"))
        except Exception as error:  # each filesystem has its own errors
            raise unreadable(unit.source, unit.url, error) from error
        try:
            parquet = opened(file, **options)
        except Exception as error:  # each filesystem has its own errors
            if not is_damage(error):
                raise unreadable(unit.source, unit.url, error) from error
            found = words_of(error, unit.source)
            raise UnitError(
                f"{unit.url} is a Parquet file that is damaged or truncated ({found}); make or copy it again"
            ) from error
        yield parquet


def _expect_columns(unit: Unit, schema: pa.Schema, columns: Sequence[str]) -> None:
    """Raise UnitError unless each column exists once and can contain texts."""
    for position, name in enumerate(columns):
        found = schema.get_all_field_indices(name)
        if len(found) != 1:
            how_many = "no column" if not found else f"{len(found)} columns"
            names = ", ".join(repr(n) for n in schema.names[:_NAMED]) + (", ..." if len(schema.names) > _NAMED else "")
            option = "--column" if position == 0 else "--key-column"
            raise UnitError(
                f"{unit.url} has {how_many} {name!r}; it has {names or 'none'}: name one with {option}", permanent=True
            )
        kind = schema.field(found[0]).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if is_text(kind) or pa.types.is_null(kind) or (position and pa.types.is_integer(kind)):
            continue
        texts = [field.name for field in schema if is_text(field.type)]
        expected = "texts or integers" if position else "texts"
        others = f"; its columns of texts: {', '.join(map(repr, texts[:_NAMED]))}" if texts else ""
        raise UnitError(f"{unit.url} has {kind} in its column {name!r}; expected {expected}{others}", permanent=True)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type contains texts."""
    view = getattr(pa.types, "is_string_view", lambda _: False)  # in newer versions only
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or view(kind))


def cells_of(column: pa.Array) -> list[Any]:
    """The Python values of a column; texts that are not UTF-8 become `BadValue`."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_cell(value) for value in column]


def _cell(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return BadValue("bytes that are not UTF-8")
