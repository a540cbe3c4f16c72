"""Rows of a table and the report of a shard: their contents, not how they are written."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.sources.base import Unit

CAPTIONED = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error_message", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("caption", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("token_ids", pa.list_(pa.int32())),
        pa.field("similarity", pa.float32()),
        pa.field("token_similarity", pa.float32()),
        pa.field("caption_similarity", pa.float32()),
        pa.field("steps", pa.int32()),
        pa.field("seed", pa.int64()),
        pa.field("model", pa.string()),
    ]
)
VERIFIED = pa.schema(
    [
        pa.field("regenerated_similarity", pa.float32()),
        pa.field("regenerated_similarities", pa.list_(pa.float32())),
        pa.field(
            "regeneration",
            pa.struct(
                [
                    pa.field("model", pa.string()),
                    pa.field("score_model", pa.string()),
                    pa.field("scheduler", pa.string()),
                    pa.field("steps", pa.int32()),
                    pa.field("guidance", pa.float32()),
                    pa.field("seeds", pa.list_(pa.int64())),
                    pa.field("blanked", pa.int32()),
                    pa.field("error", pa.string()),
                ]
            ),
        ),
    ]
)
"""columns that verification fills in; null until then, and for rows without a prompt"""
GENERATOR_SIMILARITIES = pa.field("generator_similarities", pa.list_(pa.float32()))
"""the mean of each generator's images; a column before those of verification, with several generators only"""
SCHEMA = pa.schema([*CAPTIONED, *VERIFIED])
"""schema of every Parquet file, so that a partly verified folder reads as one table"""


@dataclasses.dataclass(frozen=True)
class Row:
    """The row of one key: the columns of CAPTIONED, and extra columns of the source."""

    key: str
    shard: str
    status: str
    """ok or the kind of problem: not_finite, or a status of Item"""
    error_message: str | None = None
    width: int | None = None
    height: int | None = None
    caption: str | None = None
    prompt: str | None = None
    token_ids: list[int] | None = None
    similarity: float | None = None
    token_similarity: float | None = None
    caption_similarity: float | None = None
    steps: int | None = None
    seed: int | None = None
    model: str | None = None
    columns: dict[str, Any] = dataclasses.field(default_factory=dict)
    """values of the source's extra columns, by name"""


@dataclasses.dataclass(frozen=True)
class ShardReport:
    """The result of one shard."""

    shard: str
    stem: str
    rows: int
    ok: int
    failed: dict[str, int]
    """rows that are not ok, by status"""
    seconds: float
    images_per_second: float
    mean_similarity: float | None
    failures: list[dict[str, str]]
    """key and reason of the first rows that are not ok"""
    fingerprint: str
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    """members of the tar that are in no row, by reason; see Source.read"""
    warnings: list[str] = dataclasses.field(default_factory=list)
    """deviations from the settings, such as fewer lanes because memory ran out"""

    @classmethod
    def read(cls, values: dict[str, Any]) -> "ShardReport | None":
        """A report from JSON values of any version: unknown fields are ignored; None if a field is missing."""
        fields = {field.name for field in dataclasses.fields(cls)}
        try:
            return cls(**{name: value for name, value in values.items() if name in fields})
        except TypeError:
            return None


def report_of(
    shard: Unit,
    rows: Sequence[Row],
    seconds: float,
    run: str,
    left_out: Mapping[str, int] | None = None,
    warnings: Sequence[str] = (),
) -> ShardReport:
    """Summarize the rows of a shard."""
    bad = [row for row in rows if row.status != "ok"]
    similarities = [row.similarity for row in rows if row.similarity is not None]
    failed: dict[str, int] = {}
    for row in bad:
        failed[row.status] = failed.get(row.status, 0) + 1
    return ShardReport(
        shard=shard.url,
        stem=shard.stem,
        rows=len(rows),
        ok=len(rows) - len(bad),
        failed=failed,
        seconds=round(seconds, 3),
        images_per_second=round((len(rows) - len(bad)) / max(seconds, 1e-9), 3),
        mean_similarity=sum(similarities) / len(similarities) if similarities else None,
        failures=[{"key": row.key, "reason": row.error_message or row.status} for row in bad[:100]],
        fingerprint=run,
        left_out=dict(left_out or {}),
        warnings=list(warnings),
    )
