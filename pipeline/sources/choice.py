"""From settings, and from the description of an earlier run, to the source that they mean."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pez.errors import UserError
from pez.settings import ModelSettings
from pipeline.settings import ImageSettings, TarSettings, TextSettings
from pipeline.sources.base import Source
from pipeline.sources.folders import FolderSource
from pipeline.sources.image_tables import ImageTableSource
from pipeline.sources.tars import TarSource
from pipeline.sources.texts import TextSource

_KINDS: dict[str, type[Any]] = {
    "tars": TarSource,
    "texts": TextSource,
    "folder": FolderSource,
    "table": ImageTableSource,
}
"""by what `Source.describe` calls them"""


def source_of(settings: ModelSettings) -> Source:
    """The source that the settings of a job name."""
    if isinstance(settings, TextSettings):
        return TextSource(settings.column, settings.key_column)
    assert isinstance(settings, TarSettings), "settings of a job name a source"
    if isinstance(settings, ImageSettings) and settings.input_kind == "folder":
        return FolderSource(settings.image_key, settings.caption_key, settings.key_split)
    if isinstance(settings, ImageSettings) and settings.input_kind == "table":
        columns = (settings.image_column, settings.url_column, settings.key_column, settings.caption_column)
        return ImageTableSource(*columns)
    return TarSource(settings.image_key, settings.caption_key, settings.key_split, settings.allow_unfinished_tars)


def described_source(description: Mapping[str, Any]) -> Source:
    """The source of an earlier run.

    Args:
        description: what `Source.describe` gave then.
    """
    options = dict(description)
    source: Source = _KINDS[options.pop("kind", "tars")](**options)
    return source


def image_source_of(description: Mapping[str, Any]) -> Source:
    """How the images of an output were read.

    Args:
        description: of the run that learned its prompts.

    Raises:
        UserError: its prompts are of texts.
    """
    source = described_source(description["source"])
    if isinstance(source, TextSource):
        raise UserError("the prompts are of texts; expected the output of pez caption, whose images can be compared")
    if isinstance(source, TarSource):  # read to its end before
        return dataclasses.replace(source, allow_unfinished_tars=True)
    return source
