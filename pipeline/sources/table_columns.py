"""The columns with images, paths or captions of a table: those given by options, or detected by names and types."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import pyarrow as pa

from pez.errors import UserError
from pipeline.settings import ImageSettings
from pipeline.sources.base import Unit
from pipeline.sources.csv_rows import csv_header
from pipeline.sources.image_tables import described, holds_images, table_kind
from pipeline.sources.json_lines import first_names
from pipeline.sources.parquet_rows import is_text, open_parquet

Settings = TypeVar("Settings", bound=ImageSettings)

_IMAGES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "image_bytes")
_URLS = (
    *("url", "image_url", "img_url", "image_link", "uri", "image_uri", "path", "image_path", "img_path", "file"),
    *("file_name", "filename", "filepath", "file_path", "image", "image_file", "image_filename", "img"),
)
_CAPTIONS = ("caption", "text")


def with_columns(settings: Settings, unit: Unit) -> Settings:
    """The settings, completed with the columns of a table.

    Raises:
        UserError: a given column does not exist, there is no column of images, or several are possible.
    """
    types, schema, shown = _columns_of(unit)
    for option in ("image_column", "url_column", "key_column", "caption_column"):
        name = getattr(settings, option)
        if name is not None and name not in types:
            raise UserError(f"{option} is {name!r}, and {unit.url} has no such column; it has {shown}")
    if settings.image_column is None and settings.url_column is None:
        held = [name for name, kind in types.items() if kind is not None and holds_images(kind)]
        if (image := _one(held, _of_features(schema) or _IMAGES, "--image-column", unit)) is not None:
            settings = dataclasses.replace(settings, image_column=image)
        else:
            texts = _texts(types)
            url = _one([name for name in texts if name.lower() in _URLS], (), "--url-column", unit)
            if url is None:
                raise UserError(
                    f"{unit.url} has no column of images; it has {shown}: name one with --image-column, or one of "
                    "paths or URLs with --url-column; a table of texts is read by: pez distill --input TABLE --column NAME"
                )
            settings = dataclasses.replace(settings, url_column=url)
    if settings.caption_column is None:
        taken = (settings.image_column, settings.url_column, settings.key_column)
        captions = [name for name in _texts(types) if name.lower() in _CAPTIONS and name not in taken]
        if captions:
            settings = dataclasses.replace(
                settings, caption_column=min(captions, key=lambda n: _CAPTIONS.index(n.lower()))
            )
    return settings


def expect_group_column(unit: Unit, name: str) -> None:
    """Refuse a column of groups that a table does not have.

    Raises:
        UserError: there is no such column.
    """
    types, _, shown = _columns_of(unit)
    if name not in types:
        raise UserError(f"--group-by is 'column:{name}', and {unit.url} has no such column; it has {shown}")


def _columns_of(unit: Unit) -> tuple[Mapping[str, pa.DataType | None], pa.Schema | None, str]:
    """(types by name, schema of Parquet, the columns for messages) of a table."""
    kind = table_kind(unit)
    if kind == "parquet":
        with open_parquet(unit) as file:
            schema = file.schema_arrow
        return {field.name: field.type for field in schema}, schema, described(schema)
    names = first_names(unit) if kind == "jsonl" else csv_header(unit)
    return dict.fromkeys(names), None, ", ".join(map(repr, names[:20])) or "none"


def _texts(types: Mapping[str, pa.DataType | None]) -> list[str]:
    return [name for name, kind in types.items() if kind is None or is_text(kind)]


def _one(names: Sequence[str], usual: Iterable[str], option: str, unit: Unit) -> str | None:
    """The only column, or the only one of several with a usual name; None if there is none."""
    if len(names) <= 1:
        return names[0] if names else None
    named = [name for name in names if name.lower() in usual or name in usual]
    if len(named) != 1:
        listed = ", ".join(repr(name) for name in names[:20])
        raise UserError(f"{unit.url} has several possible columns, {listed}; name one with {option}")
    return named[0]


def _of_features(schema: pa.Schema | None) -> list[str]:
    """The columns that Hugging Face datasets has declared as images."""
    try:
        features = json.loads(((schema and schema.metadata) or {})[b"huggingface"])["info"]["features"]
        return [name for name, feature in features.items() if feature.get("_type") == "Image"]
    except (AttributeError, KeyError, ValueError, TypeError):
        return []
