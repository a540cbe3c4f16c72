"""The results of verification in an output folder: columns of the Parquet files, and files like the table's own.

out/<stem>.parquet              the same rows with the last three columns filled in; replaces the original file
out/_verified/<stem>.json       written after it; marks a verified shard
out/_verify.json                the settings; runs with other settings are refused
out/_regenerated/<stem>.tar     the generated images, if they are kept
"""

import contextlib
import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
from PIL import Image

from pez.errors import UserError
from pipeline.description import differences, fingerprint
from pipeline.errors import OutputError
from pipeline.folder import DamagedError
from pipeline.rows import GENERATOR_SIMILARITIES, VERIFIED
from pipeline.sources.base import Unit
from pipeline.stages.learned_columns import ALTERNATIVES, REGENERATED, columns_of_prompt
from pipeline.table import PromptTable


@dataclasses.dataclass(frozen=True)
class Regenerated:
    """The result for the prompt of one row."""

    similarities: list[float | None] | None
    """to the original, one per seed and generator, those of the first generator first; None for images blanked by the safety
    checker"""
    seeds: list[int]
    """of these images"""
    error: str | None = None
    """why there are no similarities"""
    generators: int = 1
    chosen: int = 0
    """which of the row's alternatives the images are of"""
    alternatives: tuple[tuple[float | None, float | None], ...] = ()
    """if all alternatives are generated from: means of each under the guide and under the judge"""

    @property
    def means(self) -> list[float | None]:
        """Means over the images of each generator that were not blanked."""
        values = self.similarities or []
        each = len(values) // self.generators
        return [mean_of(values[i * each : (i + 1) * each]) for i in range(self.generators)]

    @property
    def mean(self) -> float | None:
        """Mean over the generators."""
        return mean_of(self.means)

    @property
    def blanked(self) -> int:
        return sum(value is None for value in self.similarities or ())


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """The result for the prompts of one shard."""

    shard: str
    stem: str
    rows: int
    """rows with a prompt"""
    scored: int
    """rows with a similarity"""
    blanked: int
    """images blanked by the safety checker"""
    seconds: float
    images_per_second: float
    """generated images per second"""
    mean_similarity: float | None
    """over the scored rows"""
    failures: list[dict[str, str]]
    """key and reason of the first rows for which no image could be generated"""
    fingerprint: str
    warnings: list[str] = dataclasses.field(default_factory=list)
    """see ShardReport"""
    prompt_similarity: float | None = None
    """mean similarity of the published prompts under the guide, if each row has several to choose from"""


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean of those that are not None; None if there are none."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


Keep = Callable[[str, str, Sequence[Image.Image | None]], None]
"""takes the key, the prompt and the generated images of a row"""


class VerifiedTable:
    """The verification of an output folder: how images generated from its prompts compare with the originals.

    Args:
        prompts: the folder.
        settings: everything that determines the added columns, as JSON values.
        keep_images: a shard counts as finished only if its generated images are kept.
    """

    def __init__(self, prompts: PromptTable, settings: dict[str, Any], keep_images: bool = False) -> None:
        self.prompts, self.settings, self.keep_images = prompts, settings, keep_images
        self.fingerprint = fingerprint(settings)

    def check(self) -> None:
        """Check that this run may verify here; changes nothing.

        Earlier settings with which no shard was verified, such as those of a run whose generator did not load, are ignored.

        Raises:
            UserError: the folder was verified with other settings.
        """
        earlier = self._of_others()
        if earlier is not None and any(
            (self._marker(stem) or {}).get("fingerprint") == earlier.get("fingerprint")
            for stem in sorted(self.prompts.names("_verified", ".json"))
        ):
            theirs = earlier.get("settings", {})
            if "generator" not in theirs:
                raise UserError(
                    f"{self.prompts.url} was verified by an earlier version of this project; "
                    "finish it with that version, or delete _verify.json and _verified/ there to redo it"
                )
            described = differences(theirs, self.settings)
            raise UserError(
                f"{self.prompts.url} is verified with other settings: {described}; "
                "use the same settings, or delete _verify.json and _verified/ there to redo it"
            )

    def claim(self) -> None:
        """Record the settings.

        Raises:
            UserError: the folder is not writable, or verified with other settings.
        """
        self.check()
        run = {"fingerprint": self.fingerprint, "settings": self.settings}
        try:
            self.prompts.put("_verify.json", (json.dumps(run, indent=2) + "\n").encode())
        except OutputError as error:
            raise UserError(str(error)) from error

    def pending(self, shards: Sequence[Unit]) -> list[Unit]:
        """The shards that are not verified yet; all have prompts."""
        marked = self.prompts.names("_verified", ".json")
        with ThreadPoolExecutor(16) as pool:
            done = pool.map(lambda shard: shard.stem in marked and self.finished(shard) is not None, shards)
            return [shard for shard, verified in zip(shards, done, strict=True) if not verified]

    def finished(self, shard: Unit) -> VerifyReport | None:
        """The report of a verified shard, or None.

        The marker alone does not count, because the prompts may have been redone since.
        """
        values = self._marker(shard.stem)
        if values is None or (values.get("shard"), values.get("fingerprint")) != (shard.url, self.fingerprint):
            return None
        if self.keep_images and not self.prompts.fs.exists(self.prompts.at(_images_of(shard))):
            return None
        about = json.loads((self.prompts.read_metadata(f"{shard.stem}.parquet") or {}).get(_ABOUT, b"{}"))
        if about.get("fingerprint") != self.fingerprint:
            return None
        try:
            return VerifyReport(
                **{f.name: values[f.name] for f in dataclasses.fields(VerifyReport) if f.name in values}
            )
        except TypeError:  # a field is missing
            return None

    def _marker(self, stem: str) -> dict[str, Any] | None:
        """The contents of a shard's marker; None if it is missing or damaged."""
        try:
            return self.prompts.read_json(f"_verified/{stem}.json")
        except DamagedError:
            return None

    def _of_others(self) -> dict[str, Any] | None:
        """The recorded settings, if they differ from these."""
        try:
            written = self.prompts.read_json("_verify.json")
        except DamagedError:  # it is rewritten; the markers show which shards are done
            return None
        return written if written is not None and written.get("fingerprint") != self.fingerprint else None

    def publish(
        self,
        shard: Unit,
        rows: pa.Table,
        found: Mapping[str, Regenerated],
        about: dict[str, Any],
        seconds: float,
        warnings: Sequence[str] = (),
    ) -> VerifyReport:
        """Rewrite a shard's rows with the columns of verification filled in, then write the marker.

        If rows have several prompts to choose from, the report of the shard gets the mean similarity of the published ones.

        Args:
            rows: of the shard, as read.
            found: results by key, for each row with a prompt.
            about: fields of `regeneration` that are the same in each row.

        Raises:
            OutputError: a file cannot be written, or another run with other settings has claimed the folder.
        """
        if self._of_others() is not None:
            raise OutputError(f"{self.prompts.url} was claimed by another run with different settings of verification")
        results = [found.get(key) for key in rows["key"].to_pylist()]
        columns: list[list[Any]] = [
            [r and r.mean for r in results],
            [r and r.similarities for r in results],
            [r and {**about, "seeds": r.seeds, "blanked": r.blanked, "error": r.error} for r in results],
        ]
        # Parquet files of earlier versions have no such columns.
        added = {*VERIFIED.names, GENERATOR_SIMILARITIES.name}
        plain = _with_chosen(rows.select([name for name in rows.column_names if name not in added]), results)
        if isinstance(self.settings.get("generator", {}).get("verify"), list):
            means = [r and r.similarities and r.means for r in results]
            plain = plain.append_column(GENERATOR_SIMILARITIES, pa.array(means, GENERATOR_SIMILARITIES.type))
        for field, values in zip(VERIFIED, columns, strict=True):
            plain = plain.append_column(field, pa.array(values, field.type))
        described = json.dumps({"fingerprint": self.fingerprint, **self.settings}, sort_keys=True).encode()
        report = dataclasses.replace(
            self._report(shard, found, seconds),
            warnings=list(dict.fromkeys(warnings)),
            prompt_similarity=_mean_similarity(plain) if ALTERNATIVES in plain.column_names else None,
        )
        self.prompts.write_table(
            f"{shard.stem}.parquet", plain.replace_schema_metadata({**(rows.schema.metadata or {}), _ABOUT: described})
        )
        if report.prompt_similarity is not None:
            self.prompts.describe_again(shard, report.prompt_similarity)
        marker = (json.dumps(dataclasses.asdict(report), indent=2) + "\n").encode()
        self.prompts.put(f"_verified/{shard.stem}.json", marker)
        return report

    @contextlib.contextmanager
    def images(self, shard: Unit) -> Iterator[Keep]:
        """A function that stores a shard's generated images: in a WebDataset beside the table, or nowhere."""
        if not self.keep_images:
            yield lambda key, prompt, images: None
            return
        import webdataset as wds  # takes seconds

        with (
            self.prompts.file(_images_of(shard)) as file,
            wds.TarWriter(file, mtime=0.0, user="pez", group="pez") as tar,
        ):

            def keep(key: str, prompt: str, images: Sequence[Image.Image | None]) -> None:
                extensions = ["png"] if len(images) == 1 else [f"{i}.png" for i in range(len(images))]
                there = {e: _png(i) for e, i in zip(extensions, images, strict=True) if i is not None}
                if there:
                    tar.write({"__key__": key, **there, "txt": prompt})

            yield keep

    def _report(self, shard: Unit, found: Mapping[str, Regenerated], seconds: float) -> VerifyReport:
        means = [result.mean for result in found.values() if result.mean is not None]
        errors = {key: result.error for key, result in found.items() if result.error is not None}
        made = sum(len(result.similarities or ()) for result in found.values())
        return VerifyReport(
            shard=shard.url,
            stem=shard.stem,
            rows=len(found),
            scored=len(means),
            blanked=sum(result.blanked for result in found.values()),
            seconds=round(seconds, 3),
            images_per_second=round(made / max(seconds, 1e-9), 3),
            mean_similarity=sum(means) / len(means) if means else None,
            failures=[{"key": key, "reason": reason} for key, reason in errors.items()][:100],
            fingerprint=self.fingerprint,
        )


def _with_chosen(rows: pa.Table, results: Sequence[Regenerated | None]) -> pa.Table:
    """The rows with the chosen prompt of each and, if all alternatives were generated from, their similarities."""
    if ALTERNATIVES not in rows.column_names:
        return rows
    field = rows.schema.field(ALTERNATIVES)
    alternatives = rows[ALTERNATIVES].to_pylist()
    for name in columns_of_prompt(field.type):
        values = rows[name].to_pylist()
        for i, (result, several) in enumerate(zip(results, alternatives, strict=True)):
            if result is not None and several:
                values[i] = several[result.chosen][name]
        place, column = rows.column_names.index(name), rows.schema.field(name)
        rows = rows.set_column(place, column, pa.array(values, column.type))
    for result, several in zip(results, alternatives, strict=True):
        for i, each in enumerate(several or ()):
            measured = result.alternatives[i] if result is not None and result.alternatives else (None, None)
            each.update(zip(REGENERATED, measured, strict=True))
    place = rows.column_names.index(ALTERNATIVES)
    return rows.set_column(place, field, pa.array(alternatives, field.type))


def _mean_similarity(rows: pa.Table) -> float | None:
    """Over the rows with a prompt."""
    return mean_of(rows["similarity"].to_pylist())


_ABOUT = b"pez-verify"  # key in the schema metadata of a Parquet file


def _images_of(shard: Unit) -> str:
    return f"_regenerated/{shard.stem}.tar"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
