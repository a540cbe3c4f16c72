"""Labelled texts from a table (Parquet, CSV, JSON lines) or from a data set of the hub."""

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence

from pez.classification import Examples
from pez.errors import UserError
from pipeline.sources.base import Unit
from pipeline.sources.csv_rows import csv_header, read_csv
from pipeline.sources.image_tables import described, table_kind
from pipeline.sources.json_lines import first_names, read_json_lines
from pipeline.sources.parquet_rows import open_parquet, rows_in
from pipeline.sources.table_rows import TableRow

_OPTIONS = ("--text-field", "--label-field")
_MOST = 200_000  # rows of a data set that are read


def read_labelled(where: str, text_field: str, label_field: str, verbalizer: Mapping[str, str]) -> Examples:
    """Read texts and labels.

    Args:
        where: a file, a URL of one, or the name of a data set on the hub; of a data set, the part `train`, or NAME:PART.
        verbalizer: words by label.

    Raises:
        UserError: it cannot be read, has no such fields, or its rows are not examples; see Examples.
    """
    fields = (text_field, label_field)
    is_file = "://" in where or os.path.exists(where)
    if not is_file and (where.count("/") > 1 or os.path.splitext(where)[1] in _ENDINGS):
        raise UserError(f"there is no file {where}; expected a table, or the name of a data set on the hub")
    rows = _of_file(where, fields) if is_file else _of_hub(where, fields)
    return Examples.of(rows, verbalizer, where)


def _of_file(where: str, fields: Sequence[str]) -> list[tuple[object, object]]:
    if os.path.isdir(where):
        raise UserError(f"{where} is a folder; expected a file: Parquet, CSV or JSON lines")
    unit = Unit(where, "examples")
    kind = table_kind(unit)
    if kind == "parquet":
        with open_parquet(unit) as file:
            _expect_fields(where, fields, file.schema_arrow.names, described(file.schema_arrow))
            return _pairs(where, rows_in(file, unit, fields, 1024))
    names = first_names(unit) if kind == "jsonl" else csv_header(unit)
    _expect_fields(where, fields, names, ", ".join(map(repr, names[:20])) or "none")
    read = read_json_lines if kind == "jsonl" else read_csv
    return _pairs(where, read(unit, fields, _OPTIONS))


def _pairs(where: str, rows: Iterable[TableRow]) -> list[tuple[object, object]]:
    found = list[tuple[object, object]]()
    for number, row in enumerate(rows):
        if row.reason is not None:
            raise UserError(f"row {number} of {where} cannot be read: {row.reason}")
        found.append((row.cells[0], row.cells[1]))
    return found


def _of_hub(where: str, fields: Sequence[str]) -> list[tuple[object, object]]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"there is no file {where}, and data sets of the hub need datasets; install it with pip install datasets"
        ) from error
    name, _, part = where.partition(":")
    try:
        found = datasets.load_dataset(name, split=part or "train")
    except Exception as error:  # the library raises many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where} is no file, and no data set that can be read: {reason}") from error
    _expect_fields(where, fields, found.column_names, ", ".join(map(repr, found.column_names)))
    return [(row[fields[0]], row[fields[1]]) for row in itertools.islice(found, _MOST)]


def _expect_fields(where: str, fields: Sequence[str], names: Sequence[str], shown: str) -> None:
    for field, option in zip(fields, _OPTIONS, strict=True):
        if field not in names:
            raise UserError(f"{where} has no field {field!r}; it has {shown}: name one with {option}")


_ENDINGS = (".parquet", ".csv", ".tsv", ".jsonl", ".json", ".gz")
