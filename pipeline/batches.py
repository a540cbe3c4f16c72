"""Prompts for the batches of a data pipeline of your own, such as one of Ray Data; this module needs no Ray.

import ray
from pipeline.batches import LearnPrompts

images = ray.data.read_images("photos", include_paths=True)
prompts = images.map_batches(
    LearnPrompts,
    fn_constructor_kwargs={"model": "ViT-L-14", "pretrained": "openai", "settings": pez.PezSettings(tokens=8)},
    batch_size=1024, num_gpus=1, concurrency=4,
)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

import pez
from pez.errors import UserError
from pez.images import ImageError, decode_image
from pez.models.load import load_model
from pipeline.settings import LearnSettings
from pipeline.sources.base import Item
from pipeline.stages.learned_columns import learned_columns, learned_values

COLUMNS = ("prompt", "similarity", "token_similarity", "token_ids", "prompt_error")
"""columns that are added to every batch; settings such as `candidates_kept` add more, as they do to a table"""


class LearnPrompts:
    """Learns a prompt for every image of a batch; holds one model, so it is made once per actor.

    Args:
        model, pretrained: the CLIP, see `pez.settings.ModelSettings`.
        settings: how to learn; default = `pez.PezSettings()`.
        image_column: encoded images, as from `read_binary_files`, or (height, width, 3) uint8 arrays, as from `read_images`.
        key_column: keys, such as paths; with the seed they determine where the search starts. None = a hash of the pixels.
        device: default = a GPU if this process has one.
    """

    def __init__(
        self,
        model: str = "ViT-H-14",
        pretrained: str = "laion2b_s32b_b79k",
        settings: pez.PezSettings | None = None,
        image_column: str = "image",
        key_column: str | None = None,
        device: str | None = None,
    ) -> None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = LearnSettings(model, pretrained).on(device)
        self.clip = load_model(self.model, device)
        self.settings, self.image_column, self.key_column = settings or pez.PezSettings(), image_column, key_column
        self.more = learned_columns(self.model, self.settings)

    def __call__(self, batch: Mapping[str, Sequence[Any] | np.ndarray]) -> dict[str, Any]:
        """Add columns to a batch.

        Args:
            batch: columns of n values.

        Returns:
            the same columns, and `prompt`, `similarity`, `token_similarity`, `token_ids` and `prompt_error`; with
            `candidates_kept` also `alternatives`, and with `fluency_text` `perplexity`, as in a table. An image that cannot be
            decoded has an empty prompt, NaN for numbers, empty lists, and the reason in `prompt_error`.

        Raises:
            UserError: there is no such column.
        """
        images, errors = self._decoded(self._column(batch, self.image_column))
        good = [index for index, error in enumerate(errors) if not error]
        keys = None
        if self.key_column is not None:
            column = self._column(batch, self.key_column)
            keys = [str(column[index]) for index in good]
        learned = pez.learn_prompts(self.clip, [images[index] for index in good], self.settings, keys) if good else []
        by_index = dict(zip(good, learned, strict=True))
        found = [by_index.get(index) for index in range(len(errors))]
        return {
            **batch,
            "prompt": np.array([prompt.text if prompt else "" for prompt in found], dtype=object),
            "similarity": np.array([prompt.similarity if prompt else np.nan for prompt in found], np.float32),
            "token_similarity": np.array(
                [prompt.token_similarity if prompt else np.nan for prompt in found], np.float32
            ),
            "token_ids": [list(prompt.token_ids) if prompt else [] for prompt in found],
            "prompt_error": np.array(errors, dtype=object),
            **self._more(found),
        }

    def _more(self, found: Sequence[pez.Prompt | None]) -> dict[str, Any]:
        """The columns that only some settings fill in."""
        values = [
            learned_values(self.model, self.settings, self.clip, Item(0, ""), prompt) if prompt else {}
            for prompt in found
        ]
        columns: dict[str, Any] = {}
        for field in self.more:
            if pa.types.is_list(field.type):
                columns[field.name] = [value.get(field.name) or [] for value in values]
            else:
                numbers = [value.get(field.name) for value in values]
                columns[field.name] = np.array([np.nan if one is None else one for one in numbers], np.float32)
        return columns

    def _column(self, batch: Mapping[str, Sequence[Any] | np.ndarray], name: str) -> Sequence[Any]:
        if name not in batch:
            raise UserError(f"the batch has no column {name!r}; it has {', '.join(batch)}")
        column: Sequence[Any] = batch[name]  # type: ignore[assignment]
        return column

    def _decoded(self, column: Sequence[Any]) -> tuple[list[Any], list[str]]:
        """Images, and an error for each, empty if there is none."""
        images: list[Any] = []
        errors: list[str] = []
        for value in column:
            try:
                images.append(decode_image(value) if isinstance(value, bytes) else np.asarray(value))
                errors.append("")
            except ImageError as error:
                images.append(None)
                errors.append(str(error))
        return images, errors
