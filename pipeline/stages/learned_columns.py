"""Columns that only some settings fill in; they stand between the fixed columns and those of verification."""

import pyarrow as pa

import pez
from pipeline.settings import CaptionSettings, LearnSettings, TextSettings


def learned_columns(settings: LearnSettings, method: pez.PezSettings) -> list[pa.Field]:
    """The columns that these settings add to a table of prompts."""
    columns = []
    if method.method == "soft":
        columns.append(pa.field("soft_similarity", pa.float32()))
    if len(settings.models) > 1:
        columns.append(pa.field("model_similarities", pa.list_(pa.float32())))
    if isinstance(settings, CaptionSettings) and settings.caption_weight:
        columns.append(pa.field("target_similarities", pa.list_(pa.float32())))
    if isinstance(settings, TextSettings):
        columns += [pa.field("tokens_before", pa.int32()), pa.field("tokens_after", pa.int32())]
    return columns
