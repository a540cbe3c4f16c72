"""The rows of a unit that are exported, with their texts."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from pipeline.exports.settings import ExportSettings

COLUMNS = pa.schema(
    [
        pa.field("text", pa.string()),
        pa.field("key", pa.string()),
        pa.field("shard", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("similarity", pa.float32()),
        pa.field("caption_similarity", pa.float32()),
        pa.field("regenerated_similarity", pa.float32()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("model", pa.string()),
    ]
)
"""columns of exported tables: the text to train on, and those of the output that say where it is from and how good it is"""


@dataclasses.dataclass(frozen=True)
class ExportRow:
    """A row to export."""

    key: str
    text: str
    similarity: float | None
    values: Mapping[str, Any]
    """of COLUMNS"""


def exported_rows(rows: pa.Table, settings: ExportSettings, left_out: Counter[str]) -> Iterator[ExportRow]:
    """Choose rows of a unit.

    Args:
        rows: as read from the output.
        left_out: counts the others, by reason.
    """
    least = settings.min_similarity
    for batch in rows.to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            similarity = row["similarity"]
            if row["status"] != "ok":
                left_out[f"without a prompt ({row['status']})"] += 1
            elif least is not None and (similarity is None or similarity < least):
                left_out[f"similarity below {least:g}"] += 1
            elif (text := settings.text_of(row)) is None:
                left_out["without a text"] += 1
            else:
                values = {"text": text, **{name: row.get(name) for name in COLUMNS.names[1:]}}
                yield ExportRow(row["key"], text, similarity, values)


def text_columns(schema: pa.Schema) -> list[str]:
    """Names of the columns of texts."""
    return [field.name for field in schema if pa.types.is_string(field.type)]
