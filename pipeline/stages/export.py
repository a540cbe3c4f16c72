"""The stage that exports a unit: rows of the output and images of the input, in the format of a trainer. It has no model."""

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pez.errors import UserError
from pipeline.exports.folder import ExportFolder, ExportReport
from pipeline.exports.image_files import count_missing, write_dataset, write_image_folder, write_sidecars
from pipeline.exports.rows import ExportRow, exported_rows
from pipeline.exports.settings import WITHOUT_IMAGES, ExportSettings
from pipeline.exports.shards import samples_of_items, samples_of_tar, write_samples
from pipeline.exports.tables import write_csv, write_json_lines
from pipeline.run import warning_log
from pipeline.run.tasks import Task
from pipeline.sources.base import Item, LateCaption, Source, Unit, UnitError
from pipeline.sources.choice import image_source_of
from pipeline.sources.folders import FolderSource
from pipeline.sources.tars import TarSource
from pipeline.table import PromptTable
from pipeline.urls import is_local


@dataclasses.dataclass
class ExportProgress:
    """Progress of the current units, for display."""

    rows: int = 0


@dataclasses.dataclass(frozen=True)
class ExportStage:
    """Export units of an output to a folder.

    Args:
        output, folder: URLs to open; they may contain passwords.
        prompts: description of the prompts.
        one_tree: the units are of one folder of images, whose tree a sidecar export keeps.
    """

    settings: ExportSettings
    output: str
    prompts: dict[str, Any]
    folder: str
    one_tree: bool = False
    name: str = "export"

    def open(self, device: str, threads: int) -> "ExportWorker":
        table = PromptTable(self.output, self.prompts)
        return ExportWorker(ExportFolder(self.folder, table, self.settings), self.one_tree)


class ExportWorker:
    """The output and the folder that it is exported to."""

    def __init__(self, folder: ExportFolder, one_tree: bool = False) -> None:
        self.folder, self.one_tree = folder, one_tree
        self.progress = ExportProgress()

    def run(self, task: Task) -> ExportReport:
        return export_unit(task.unit, self.folder, self.one_tree, self.progress)


def source_for(table: PromptTable, settings: ExportSettings) -> Source | None:
    """The source of the images; None if the format has none.

    Raises:
        UserError: the format needs images, and the prompts are of texts; or links are asked for and cannot be made.
    """
    if settings.format in WITHOUT_IMAGES:
        return None
    source = image_source_of(table.settings)
    if settings.link and not isinstance(source, FolderSource):
        raise UserError("--link needs images in a local folder; the input is of another kind. Omit it to copy them")
    return source


def export_unit(shard: Unit, folder: ExportFolder, one_tree: bool, progress: ExportProgress) -> ExportReport:
    """Export one unit.

    Raises:
        UnitError: it has no prompts, or its images cannot be read to the end.
        OutputError: a file cannot be written.
    """
    if report := folder.finished(shard):  # by an earlier run, or by an actor that was lost after writing it
        return report
    if folder.prompts.finished(shard) is None:
        raise UnitError(f"{shard.url} has no prompts in {folder.prompts.url}; run pez caption first")
    start, version = time.monotonic(), folder.version_of(shard)
    left_out: Counter[str] = Counter()
    progress.rows = 0
    with warning_log.recording() as warnings:
        rows = {row.key: row for row in exported_rows(folder.prompts.read(shard), folder.settings, left_out)}
        written = _write(shard, folder, rows, one_tree, left_out, progress)
        count_missing(rows, written, left_out)
    report = ExportReport(
        shard=shard.url,
        stem=shard.stem,
        rows=len(written),
        left_out=dict(left_out),
        similarity=sum(rows[key].similarity or 0.0 for key in written),
        seconds=round(time.monotonic() - start, 3),
        prompts=version,
        fingerprint=folder.fingerprint,
        warnings=list(dict.fromkeys(warnings)),
    )
    folder.mark(report)
    return report


def _write(
    shard: Unit,
    folder: ExportFolder,
    rows: dict[str, ExportRow],
    one_tree: bool,
    left_out: Counter[str],
    progress: ExportProgress,
) -> set[str]:
    """Write the files of a unit.

    Returns:
        the keys that were written.
    """
    settings = folder.settings
    source = source_for(folder.prompts, settings)
    if source is None:
        with folder.file(f"{shard.stem}.{settings.format}") as file:
            (write_csv if settings.format == "csv" else write_json_lines)(file, rows.values())
        progress.rows = len(rows)
        return set(rows)
    if settings.format == "webdataset":
        found = (
            samples_of_tar(shard, source, rows, left_out)
            if isinstance(source, TarSource)
            else samples_of_items(_items(shard, source, rows, progress))
        )
        with folder.file(f"{shard.stem}.tar") as file:
            return write_samples(file, found, {key: row.text for key, row in rows.items()})
    items = _items(shard, source, rows, progress)
    if settings.format == "imagefolder":
        return write_image_folder(folder, f"{shard.stem}/", items, rows)
    if settings.format == "datasets":
        return write_dataset(folder, f"data/{shard.stem}.parquet", items, rows)
    links = {}
    if settings.link and isinstance(source, FolderSource):
        links = {key: path for key, path in source.urls(shard).items() if is_local(path)}
    return write_sidecars(folder, "" if one_tree else f"{shard.stem}/", items, rows, links)


def _items(shard: Unit, source: Source, rows: dict[str, ExportRow], progress: ExportProgress) -> Iterator[Item]:
    """The items of the exported rows."""
    some: Any = getattr(source, "read_keys", None)
    for item in some(shard, rows.keys()) if some else source.read(shard, Counter()):
        if item.key in rows and not isinstance(item, LateCaption):
            progress.rows += 1
            yield item
