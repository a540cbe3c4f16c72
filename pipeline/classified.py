"""The output of `pez classify`: a table of prompts, one Parquet file a unit, with the bookkeeping of other outputs."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pez.classification import SEARCH, Question, SearchMethod, SearchSettings
from pipeline.description import chosen
from pipeline.rows import ShardReport
from pipeline.sources.base import Unit
from pipeline.table import PromptTable

PROMPTS = pa.schema(
    [
        pa.field("method", pa.string(), nullable=False),
        pa.field("seed", pa.int64()),
        pa.field("restart", pa.int32()),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("tokens", pa.int32()),
        pa.field("heldout_accuracy", pa.float64()),
        pa.field("heldout_loss", pa.float64()),
        pa.field("test_accuracy", pa.float64()),
        pa.field("test_loss", pa.float64()),
        pa.field("perplexity", pa.float64()),
        pa.field("step", pa.int32()),
        pa.field("steps", pa.int32()),
        pa.field("million_passes", pa.float64()),
        pa.field("model", pa.string(), nullable=False),
        pa.field("score_models", pa.list_(pa.string())),
        pa.field("score_accuracies", pa.list_(pa.float64())),
    ]
)


@dataclasses.dataclass(frozen=True)
class PromptRow:
    """One prompt; the columns of PROMPTS."""

    method: str
    """of the search; `empty` and `random words` for the prompts to compare with"""
    prompt: str
    model: str
    seed: int | None = None
    restart: int | None = None
    tokens: int | None = None
    heldout_accuracy: float | None = None
    heldout_loss: float | None = None
    test_accuracy: float | None = None
    test_loss: float | None = None
    perplexity: float | None = None
    step: int | None = None
    """after which it was found"""
    steps: int | None = None
    """taken by the search"""
    million_passes: float | None = None
    """tokens that the search sent through the model, in millions, for each restart; a gradient counts as three passes"""
    score_models: list[str] = dataclasses.field(default_factory=list)
    score_accuracies: list[float] = dataclasses.field(default_factory=list)
    """on the test part, under each of the score models"""


@dataclasses.dataclass(frozen=True)
class SearchUnit(Unit):
    """A group of restarts of a method with a seed; without restarts, the prompts to compare with."""

    method: SearchMethod = "default"
    seed: int = 0
    restarts: tuple[int, ...] = ()


def search_units(
    methods: Sequence[SearchMethod], seeds: Sequence[int], restarts: int, at_once: int
) -> list[SearchUnit]:
    """The units of a sweep: every method with every seed, then the prompts to compare with."""
    units = []
    for method in methods:
        for seed in seeds:
            for first in range(0, restarts, at_once):
                group = tuple(range(first, min(first + at_once, restarts)))
                name = f"{method}, seed {seed}, restarts {group[0]}-{group[-1]}"
                stem = f"{method}-seed{seed}-restarts{group[0]:04d}-{group[-1]:04d}"
                units.append(SearchUnit(name, stem, method=method, seed=seed, restarts=group))
    return [*units, SearchUnit("prompts to compare with", "compared")]


def described_sweep(
    model: str,
    score_models: Sequence[str],
    question: Question,
    search: SearchSettings,
    restarts_per_unit: int,
    random_prompts: int,
) -> dict[str, Any]:
    """Everything that determines the rows, as JSON values; methods, seeds and restarts only add units."""
    parts = {name: getattr(question, name) for name in ("train", "heldout", "test")}
    digest = hashlib.sha256(repr([(part.texts, part.labels) for part in parts.values()]).encode()).hexdigest()[:16]
    settings = chosen(search)
    settings.pop("restarts", None)
    return {
        "version": SEARCH,
        "kind": "classify",
        "model": {"model": model, "score_models": list(score_models)},
        "question": {
            "template": question.template.text,
            "words": question.verbalizer,
            "text_tokens": question.text_tokens,
            "examples": digest,
        },
        "search": settings | {"restarts_per_unit": restarts_per_unit, "random_prompts": random_prompts},
    }


class PromptRows(PromptTable):
    """An output folder of `pez classify`."""

    def publish_prompts(
        self, unit: Unit, rows: Sequence[PromptRow], seconds: float, warnings: list[str]
    ) -> ShardReport:
        """Write a unit's rows, then its report; raises as PromptTable.publish does."""
        self.check_claim()
        report = ShardReport(
            shard=unit.url,
            stem=unit.stem,
            rows=len(rows),
            ok=len(rows),
            failed={},
            seconds=round(seconds, 3),
            images_per_second=0.0,
            mean_similarity=None,
            failures=[],
            fingerprint=self.fingerprint,
            warnings=warnings,
        )
        columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in rows] for name in PROMPTS.names}
        settings = json.dumps({"fingerprint": self.fingerprint, **self.settings}, sort_keys=True).encode()
        table = pa.table(columns, schema=PROMPTS.with_metadata({b"pez": settings}))
        self.write_table(f"{unit.stem}.parquet", table)
        self.put(f"_reports/{unit.stem}.json", (json.dumps(dataclasses.asdict(report), indent=2) + "\n").encode())
        return report

    def read_prompts(self, unit: Unit) -> list[PromptRow]:
        """The rows of a finished unit. Raises as `read` does."""
        return [PromptRow(**values) for values in self.read(unit).to_pylist()]
