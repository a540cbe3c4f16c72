"""The source for given settings, or for the description of an earlier run."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pez.errors import UserError
from pez.settings import ModelSettings
from pipeline.settings import ImageSettings, TarSettings, TextSettings
from pipeline.sources.base import Source
from pipeline.sources.folders import FolderSource
from pipeline.sources.group_by import GroupBy
from pipeline.sources.grouping import GroupedSource, grouped
from pipeline.sources.image_tables import ImageTableSource
from pipeline.sources.tars import TarSource
from pipeline.sources.texts import TextSource

_KINDS: dict[str, type[Any]] = {
    "tars": TarSource,
    "texts": TextSource,
    "folder": FolderSource,
    "table": ImageTableSource,
}
"""by their names in `Source.describe`"""


def source_of(settings: ModelSettings) -> Source:
    """The source named by the settings of a job."""
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
        description: the result of `Source.describe` in that run.
    """
    options = dict(description)
    if options.get("kind") == "groups":
        by = GroupBy.parse(options["group_by"])
        return grouped(described_source(options["of"]), by, options.get("groups_per_unit", 1000))
    source: Source = _KINDS[options.pop("kind", "tars")](**options)
    return source


def image_source_of(description: Mapping[str, Any]) -> Source:
    """The source of the images of an output.

    Args:
        description: of the run that learned its prompts.

    Raises:
        UserError: its prompts were learned from texts or from groups of images.
    """
    source = described_source(description["source"])
    if isinstance(source, TextSource):
        raise UserError("the prompts are of texts; expected the output of pez caption, whose images can be compared")
    if isinstance(source, GroupedSource):
        raise UserError(
            f"the prompts are of groups of images (--group-by {source.by}), so there is no single original; expected the "
            "output of pez caption without --group-by"
        )
    if isinstance(source, TarSource):  # an earlier run read it to its end
        return dataclasses.replace(source, allow_unfinished_tars=True)
    return source
