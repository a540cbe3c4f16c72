"""Rows without images, as JSON lines or CSV."""

import csv
import io
import json
from collections.abc import Iterable
from typing import IO

from pipeline.exports.rows import COLUMNS, ExportRow


def write_json_lines(file: IO[bytes], rows: Iterable[ExportRow]) -> None:
    """Write an object for each row; characters beyond ASCII are not escaped."""
    for row in rows:
        values = {name: _shown(value) for name, value in row.values.items()}
        file.write((json.dumps(values, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))


def write_csv(file: IO[bytes], rows: Iterable[ExportRow]) -> None:
    """Write a heading and a line for each row."""
    text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
    writer = csv.DictWriter(text, COLUMNS.names)
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _shown(value) for name, value in row.values.items()})
    text.flush()
    text.detach()


def _shown(value: object) -> object:
    return float(f"{value:.7g}") if isinstance(value, float) else value  # the digits of a float32
