"""Rows of a table and the report of a shard: their contents, not how they are written."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_origin, get_type_hints

import pyarrow as pa

from pipeline.sources.base import Unit


@dataclasses.dataclass(frozen=True)
class Row:
    """The row of one key: its fields are the first columns of a table, with their types in Parquet; then come extra columns."""

    key: Annotated[str, pa.string()]
    shard: Annotated[str, pa.string()]
    status: Annotated[str, pa.string()]
    """ok or the kind of problem: not_finite, or a status of Item"""
    error_message: Annotated[str | None, pa.string()] = None
    width: Annotated[int | None, pa.int32()] = None
    height: Annotated[int | None, pa.int32()] = None
    caption: Annotated[str | None, pa.string()] = None
    prompt: Annotated[str | None, pa.string()] = None
    token_ids: Annotated[list[int] | None, pa.list_(pa.int32())] = None
    similarity: Annotated[float | None, pa.float32()] = None
    token_similarity: Annotated[float | None, pa.float32()] = None
    caption_similarity: Annotated[float | None, pa.float32()] = None
    steps: Annotated[int | None, pa.int32()] = None
    seed: Annotated[int | None, pa.int64()] = None
    model: Annotated[str | None, pa.string()] = None
    columns: dict[str, Any] = dataclasses.field(default_factory=dict)
    """values of extra columns, by name"""


def _columns_of(row: type) -> pa.Schema:
    """The columns of a dataclass of rows; a field without a default is never null."""
    required = {field.name for field in dataclasses.fields(row) if field.default is dataclasses.MISSING}
    hints = get_type_hints(row, include_extras=True)
    kinds = {name: hint.__metadata__[0] for name, hint in hints.items() if get_origin(hint) is Annotated}
    return pa.schema([pa.field(name, kind, nullable=name not in required) for name, kind in kinds.items()])


CAPTIONED = _columns_of(Row)
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
