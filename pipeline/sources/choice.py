"""From settings, and from the description of an earlier run, to the source that they mean."""

from collections.abc import Mapping
from typing import Any

from pez.settings import ModelSettings
from pipeline.settings import TarSettings, TextSettings
from pipeline.sources.base import Source
from pipeline.sources.tars import TarSource
from pipeline.sources.texts import TextSource


def source_of(settings: ModelSettings) -> Source:
    """The source that the settings of a job name."""
    if isinstance(settings, TextSettings):
        return TextSource(settings.column, settings.key_column)
    assert isinstance(settings, TarSettings), "settings of a job name a source"
    return TarSource(settings.image_key, settings.caption_key, settings.key_split, settings.allow_unfinished_tars)


def described_source(description: Mapping[str, Any]) -> Source:
    """The source of an earlier run.

    Args:
        description: what `Source.describe` gave then.
    """
    options = dict(description)
    return TextSource(**options) if options.pop("kind", "tars") == "texts" else TarSource(**options)
