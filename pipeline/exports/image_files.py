"""Images with their texts: each text in a file beside its image, or all of a unit in one table."""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.exports.folder import ExportFolder
from pipeline.exports.names import extension_of, path_of
from pipeline.exports.rows import COLUMNS, ExportRow
from pipeline.sources.base import Item

FILE_NAME = pa.field("file_name", pa.string())
IMAGE = pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())]))
"""an image in the form of Hugging Face datasets"""
_DTYPES = {pa.string(): "string", pa.float32(): "float32", pa.int32(): "int32"}
_BATCH = 64  # images per row group, which readers hold in memory


def write_sidecars(
    folder: ExportFolder, below: str, items: Iterable[Item], rows: Mapping[str, ExportRow], links: Mapping[str, str]
) -> set[str]:
    """Write images, or links to them, each with a .txt beside it.

    Args:
        below: folder for them in the export, with a slash at its end, or empty.
        links: path of the original by key; those that are missing are copied.

    Returns:
        the keys that were written.
    """
    written = set()
    for item in items:
        if item.image is None:
            continue
        name = below + path_of(item.key)
        original = links.get(item.key)
        if original is None:
            folder.put(f"{name}.{extension_of(item.image)}", item.image)
        else:
            _link(folder.at(name + os.path.splitext(original)[1].lower()), original)
        folder.put(f"{name}.txt", rows[item.key].text.encode())
        written.add(item.key)
    return written


def _link(path: str, original: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    os.symlink(os.path.abspath(original), path)


def write_image_folder(
    folder: ExportFolder, below: str, items: Iterable[Item], rows: Mapping[str, ExportRow]
) -> set[str]:
    """Write images, and a `metadata.parquet` beside them with a row for each.

    Returns:
        the keys that were written.
    """
    names: dict[str, str] = {}
    for item in items:
        if item.image is not None:
            names[item.key] = f"{path_of(item.key)}.{extension_of(item.image)}"
            folder.put(below + names[item.key], item.image)
    values = [{"file_name": name, **rows[key].values} for key, name in names.items()]
    with folder.file(f"{below}metadata.parquet") as file:
        pq.write_table(pa.Table.from_pylist(values, pa.schema([FILE_NAME, *COLUMNS])), file, compression="zstd")
    return set(names)


def write_dataset(folder: ExportFolder, name: str, items: Iterable[Item], rows: Mapping[str, ExportRow]) -> set[str]:
    """Write images and rows as one Parquet file, as `datasets` does.

    Returns:
        the keys that were written.
    """
    schema = pa.schema([IMAGE, *COLUMNS]).with_metadata({"huggingface": _features()})
    written: set[str] = set()
    batch: list[dict[str, Any]] = []
    with folder.file(name) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:

        def flush() -> None:
            if batch:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch.clear()

        for item in items:
            if item.image is not None:
                path = f"{path_of(item.key)}.{extension_of(item.image)}"
                batch.append({"image": {"bytes": item.image, "path": path}, **rows[item.key].values})
                written.add(item.key)
                if len(batch) == _BATCH:
                    flush()
        flush()
    return written


def _features() -> bytes:
    """The metadata by which `datasets` knows that a column has images."""
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    features |= {field.name: {"dtype": _DTYPES[field.type], "_type": "Value"} for field in COLUMNS}
    return json.dumps({"info": {"features": features}}).encode()


def count_missing(rows: Mapping[str, ExportRow], written: set[str], left_out: Counter[str]) -> None:
    """Count rows whose image is no longer in the input."""
    if missing := len(rows) - len(written):
        left_out["its image is no longer in the input"] += missing
