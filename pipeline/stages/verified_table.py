"""The part of an output folder that is verification's: columns of the Parquet, and files like the table's own.

out/<stem>.parquet              the same rows with the last three columns filled in, put in the place of the first
out/_verified/<stem>.json       written after it: the marker of a verified shard
out/_verify.json                the settings; another run may only add to the folder with the same ones
out/_regenerated/<stem>.tar     the pictures that were made, if they are kept
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
from pipeline.rows import VERIFIED
from pipeline.sources.base import Unit
from pipeline.table import PromptTable


@dataclasses.dataclass(frozen=True)
class Regenerated:
    """What became of one row's prompt as pictures."""

    similarities: list[float | None] | None
    """to the original, one a seed; None for a picture that the safety checker blanked"""
    seeds: list[int]
    error: str | None = None
    """why there are no similarities"""

    @property
    def mean(self) -> float | None:
        """Over the pictures that are there."""
        there = [value for value in self.similarities or () if value is not None]
        return sum(there) / len(there) if there else None

    @property
    def blanked(self) -> int:
        return sum(value is None for value in self.similarities or ())


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """What became of one shard's prompts as pictures."""

    shard: str
    stem: str
    rows: int
    """with a prompt"""
    scored: int
    """of them, those with a similarity"""
    blanked: int
    """pictures that the safety checker blanked"""
    seconds: float
    images_per_second: float
    """pictures made"""
    mean_similarity: float | None
    """over the rows scored"""
    failures: list[dict[str, str]]
    """key and reason of the first rows that could not be regenerated"""
    fingerprint: str
    warnings: list[str] = dataclasses.field(default_factory=list)
    """what was done otherwise than asked for"""


Keep = Callable[[str, str, Sequence[Image.Image | None]], None]
"""takes the key, the prompt and the pictures of a row"""


class VerifiedTable:
    """The part of an output folder that tells how the prompts' pictures compare with the originals.

    Args:
        prompts: the folder.
        settings: everything that decides the added columns, as JSON values.
        keep_images: a shard is finished only where its pictures are kept.
    """

    def __init__(self, prompts: PromptTable, settings: dict[str, Any], keep_images: bool = False) -> None:
        self.prompts, self.settings, self.keep_images = prompts, settings, keep_images
        self.fingerprint = fingerprint(settings)

    def check(self) -> None:
        """See whether this run may verify here; changes nothing.

        Settings with which not one shard was verified, as of a run whose generator did not load, are left behind.

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
                    "finish it with that version, or delete _verify.json and _verified/ there to verify it again"
                )
            described = differences(theirs, self.settings)
            raise UserError(
                f"{self.prompts.url} is verified with other settings: {described}; "
                "use the same, or delete _verify.json and _verified/ there to verify anew"
            )

    def claim(self) -> None:
        """Write the settings down.

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
        """Of shards with prompts, those that are not verified."""
        marked = self.prompts.names("_verified", ".json")
        with ThreadPoolExecutor(16) as pool:
            done = pool.map(lambda shard: shard.stem in marked and self.finished(shard) is not None, shards)
            return [shard for shard, verified in zip(shards, done, strict=True) if not verified]

    def finished(self, shard: Unit) -> VerifyReport | None:
        """The report of a shard that is verified, or None.

        The marker alone does not count: its prompts may have been learned again since.
        """
        values = self._marker(shard.stem)
        if values is None or (values.get("shard"), values.get("fingerprint")) != (shard.url, self.fingerprint):
            return None
        if self.keep_images and not self.prompts.fs.exists(self.prompts.at(_pictures_of(shard))):
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
        """What the marker of a shard says, None where there is none or it is damaged."""
        try:
            return self.prompts.read_json(f"_verified/{stem}.json")
        except DamagedError:
            return None

    def _of_others(self) -> dict[str, Any] | None:
        """The settings written down, if they are not these."""
        try:
            written = self.prompts.read_json("_verify.json")
        except DamagedError:  # it is written again; the markers tell which shards are done
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
        """Write a shard's rows again with the columns of verification filled in, then the marker.

        Args:
            rows: of the shard, as read.
            found: by key, for each row with a prompt.
            about: fields of `regeneration` that are the same in each row.

        Raises:
            OutputError: the folder does not take them, or another run with other settings claimed it meanwhile.
        """
        if self._of_others() is not None:
            raise OutputError(f"{self.prompts.url} was claimed meanwhile by a run with other settings of verification")
        results = [found.get(key) for key in rows["key"].to_pylist()]
        columns: list[list[Any]] = [
            [r and r.mean for r in results],
            [r and r.similarities for r in results],
            [r and {**about, "seeds": r.seeds, "blanked": r.blanked, "error": r.error} for r in results],
        ]
        # A Parquet of an earlier version of ours has no such columns.
        plain = rows.select([name for name in rows.column_names if name not in VERIFIED.names])
        for field, values in zip(VERIFIED, columns, strict=True):
            plain = plain.append_column(field, pa.array(values, field.type))
        described = json.dumps({"fingerprint": self.fingerprint, **self.settings}, sort_keys=True).encode()
        report = dataclasses.replace(self._report(shard, found, seconds), warnings=list(dict.fromkeys(warnings)))
        self.prompts.write_table(
            f"{shard.stem}.parquet", plain.replace_schema_metadata({**(rows.schema.metadata or {}), _ABOUT: described})
        )
        marker = (json.dumps(dataclasses.asdict(report), indent=2) + "\n").encode()
        self.prompts.put(f"_verified/{shard.stem}.json", marker)
        return report

    @contextlib.contextmanager
    def pictures(self, shard: Unit) -> Iterator[Keep]:
        """Where a shard's pictures go: a WebDataset beside the table, or nowhere."""
        if not self.keep_images:
            yield lambda key, prompt, pictures: None
            return
        import webdataset as wds  # takes seconds

        with (
            self.prompts.file(_pictures_of(shard)) as file,
            wds.TarWriter(file, mtime=0.0, user="pez", group="pez") as tar,
        ):

            def keep(key: str, prompt: str, pictures: Sequence[Image.Image | None]) -> None:
                endings = ["png"] if len(pictures) == 1 else [f"{i}.png" for i in range(len(pictures))]
                there = {e: _png(p) for e, p in zip(endings, pictures, strict=True) if p is not None}
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


_ABOUT = b"pez-verify"  # of a Parquet's schema metadata


def _pictures_of(shard: Unit) -> str:
    return f"_regenerated/{shard.stem}.tar"


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
