"""Write a comparison of methods as JSON, Markdown, Parquet and a picture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.comparison import Scores, label_of, markdown, peak_of, table_of
from jobs.outcomes import mean_of, table

if TYPE_CHECKING:
    from jobs.outcomes import FiguresTable


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was compared, and the scores."""

    about: dict[str, Any]
    """images, guide, judges, generator"""
    keys: list[str]
    methods: list[Scores]
    """empty if only lengths were asked for"""
    lengths: list[Scores]
    """one method with several numbers of tokens, shortest first"""

    def tables(self) -> Iterator[FiguresTable]:
        """The results for people."""
        if self.methods:
            yield table(*table_of(self.methods))
        if self.lengths:
            yield table(*table_of(self.lengths, lengths=True))

    def write(self, json: Path | None, markdown: Path | None, parquet: Path | None, picture: Path | None) -> list[str]:
        """Write the files that are named; returns the reasons for those that cannot be written."""
        unwritten = []
        for file, write in (
            (json, self.write_json),
            (markdown, self.write_markdown),
            (parquet, self.write_parquet),
            (picture, self.write_picture),
        ):
            try:
                if file is not None:
                    write(file)
            except OSError as error:
                unwritten.append(f"failed: cannot write {file}: {error.strerror}")
        return unwritten

    def figures(self) -> dict[str, Any]:
        """JSON values."""
        values = dict(self.about)
        values["methods"] = {each.method: each.figures(self.methods[0]) for each in self.methods}
        if self.lengths:
            values["lengths"] = [each.figures(each) for each in self.lengths]
            values["peak"] = peak_of(self.lengths)
        return values

    def write_json(self, file: Path) -> None:
        file.write_text(json.dumps(self.figures(), indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def write_markdown(self, file: Path) -> None:
        tables = [table_of(self.methods)] if self.methods else []
        tables += [table_of(self.lengths, lengths=True)] if self.lengths else []
        about = ", ".join(f"{name}: {value}" for name, value in self.about.items() if value is not None)
        file.write_text("\n".join([f"{about}\n", *(markdown(*table) for table in tables)]), encoding="utf-8")

    def write_parquet(self, file: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [row for each in (*self.methods, *self.lengths) for row in each.rows(self.keys)]
        metadata = {"about": json.dumps(self.about)}
        pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(metadata), file)

    def write_picture(self, file: Path) -> None:
        """Mean and 95% interval of each method, and of each number of tokens."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        panels: list[Callable[[Any], None]] = []
        panels += [self._draw_methods] if self.methods else []
        panels += [self._draw_lengths] if self.lengths else []
        figure, axes = pyplot.subplots(
            1, len(panels), figsize=(6.5 * len(panels), 4), constrained_layout=True, squeeze=False
        )
        for draw, axis in zip(panels, axes[0], strict=True):
            draw(axis)
            axis.grid(alpha=0.3)
            axis.legend(frameon=False)
        figure.savefig(file, dpi=110, format="png")
        pyplot.close(figure)

    def _draw_methods(self, axis: Any) -> None:
        places = list(range(len(self.methods)))[::-1]
        for n, (name, values) in enumerate(_series(self.methods).items()):
            means, halves = _means(values)
            axis.errorbar(means, [p - 0.12 * n for p in places], xerr=halves, fmt="o", capsize=3, label=name)
        axis.set_yticks(places, [label_of(each.method) for each in self.methods])
        axis.set_xlabel("similarity of the text, 95% interval")

    def _draw_lengths(self, axis: Any) -> None:
        for name, values in _series(self.lengths).items():
            means, halves = _means(values)
            axis.errorbar(
                [each.settings.tokens for each in self.lengths], means, yerr=halves, fmt="o-", capsize=3, label=name
            )
        axis.set(xlabel="tokens", ylabel="similarity, 95% interval")


def _series(found: Sequence[Scores]) -> dict[str, list[list[float]]]:
    series = {"guide": [each.similarity for each in found]}
    series |= {f"judge {name}": [each.judged[name] for each in found] for name in found[0].judged}
    if found[0].regenerated:
        series["regenerated"] = [[value for value in each.regenerated if value is not None] for each in found]
    return series


def _means(values: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    means = [mean_of(each) for each in values]
    return [mean.mean or 0.0 for mean in means], [mean.interval or 0.0 for mean in means]
