"""Columns that only some settings fill in; they stand between the fixed columns and those of verification."""

from typing import Any

import pyarrow as pa

import pez
from pez.models.joint import AnyClip
from pipeline.rows import CAPTIONED
from pipeline.settings import CaptionSettings, LearnSettings, TextSettings
from pipeline.sources.base import Item

ALTERNATIVES = "alternatives"
_OF_TARGET = {"tokens_before"}
_OF_PROMPT = [
    pa.field(name, CAPTIONED.field(name).type) for name in ("prompt", "similarity", "token_ids", "token_similarity")
]
REGENERATED = ("guide_regenerated_similarity", "regenerated_similarity")
"""of the images generated from an alternative, under the guide and under the judge; null unless --choose-by regeneration"""
_MEASURED = [pa.field(name, pa.float32()) for name in REGENERATED]


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
    if method.fluency_text:
        columns.append(pa.field("perplexity", pa.float32()))
    if method.candidates_kept > 1:
        of_prompt = [field for field in columns if field.name not in _OF_TARGET]
        columns.append(pa.field(ALTERNATIVES, pa.list_(pa.struct([*_OF_PROMPT, *of_prompt, *_MEASURED]))))
    return columns


def learned_values(
    settings: LearnSettings, method: pez.PezSettings, clip: AnyClip, item: Item, prompt: pez.Prompt
) -> dict[str, Any]:
    """The values of these columns in one row."""
    values = _of_prompt(settings, method, clip, item, prompt)
    if method.candidates_kept > 1:
        values[ALTERNATIVES] = [
            {
                "prompt": each.text,
                "similarity": each.similarity,
                "token_ids": list(each.token_ids),
                "token_similarity": each.token_similarity,
                **_of_prompt(settings, method, clip, item, each),
            }
            for each in prompt.alternatives
        ]
    return values


def _of_prompt(
    settings: LearnSettings, method: pez.PezSettings, clip: AnyClip, item: Item, prompt: pez.Prompt
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if method.method == "soft":
        values["soft_similarity"] = prompt.soft_similarity
    if len(settings.models) > 1:
        values["model_similarities"] = list(prompt.model_similarities)
    if isinstance(settings, CaptionSettings) and settings.caption_weight:
        values["target_similarities"] = list(prompt.target_similarities or (prompt.similarity,))
    if method.fluency_text:
        values["perplexity"] = prompt.perplexity
    if item.text is not None:
        values |= {"tokens_before": clip.tokens.count(item.text), "tokens_after": clip.tokens.count(prompt.text)}
    return values


def columns_of_prompt(alternatives: pa.ListType) -> list[str]:
    """The columns of a row that change with its prompt, given the type of the column `alternatives`."""
    return [field.name for field in alternatives.value_type if field.name not in REGENERATED]
