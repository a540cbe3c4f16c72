"""Settings of an export, importable without torch and Ray."""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pez.errors import UserError

Format = Literal["webdataset", "sidecar", "imagefolder", "jsonl", "csv", "datasets"]
WITHOUT_IMAGES: tuple[Format, ...] = ("jsonl", "csv")


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    """What is exported, and as what; a rerun on the same folder must use the same settings."""

    format: Format
    """webdataset: tars with the prompt as .txt; sidecar: images with a .txt beside each; imagefolder: images and
    metadata.parquet, as for diffusers; jsonl, csv: rows without images; datasets: Parquet with images and a dataset card"""
    prompt_field: str = "prompt"
    """column with the texts"""
    mix: tuple[str, ...] = ()
    """another column and the share of rows that take their text from it, such as caption:0.5; the same rows each time"""
    min_similarity: float | None = None
    """leave out rows with a lower similarity"""
    template: str = "{}"
    """text around each prompt, such as 'a photo, {}'"""
    link: bool = False
    """sidecar: symbolic links to the images of a local folder instead of copies"""

    def __post_init__(self) -> None:
        if self.template.count("{}") != 1:
            raise UserError(f"template is {self.template!r}; expected exactly one {{}}, which stands for the prompt")
        if sum(self.shares.values()) > 1:
            raise UserError(f"mix is {' '.join(self.mix)}; expected shares that add up to at most 1")
        if self.min_similarity is not None and not -1 <= self.min_similarity <= 1:
            raise UserError(f"min_similarity is {self.min_similarity:g}; expected -1 to 1")
        if self.link and self.format != "sidecar":
            raise UserError(f"link applies to --format sidecar, not to {self.format}; omit it")

    @property
    def shares(self) -> dict[str, float]:
        """The share of each column of `mix`."""
        shares = {}
        for one in self.mix:
            name, _, text = one.rpartition(":")
            try:
                share = float(text)
            except ValueError:
                share = math.nan
            if not name or not 0 <= share <= 1:
                raise UserError(f"mix is {one!r}; expected a column and a share from 0 to 1, such as caption:0.5")
            shares[name] = share
        return shares

    @property
    def fields(self) -> list[str]:
        """The columns that texts come from."""
        return list(dict.fromkeys([self.prompt_field, *self.shares]))

    def text_of(self, row: Mapping[str, Any]) -> str | None:
        """The text of a row; None if it has none.

        Args:
            row: values by column; which column of a mix is used depends on `key` alone. If that one is empty, it is
                `prompt_field`.
        """
        text, point = row.get(self.prompt_field), _point(row["key"])
        for name, share in self.shares.items():
            point -= share
            if point < 0:
                text = row.get(name) or text
                break
        return self.template.replace("{}", text.strip()) if text and text.strip() else None

    def expect_columns(self, texts: Sequence[str]) -> None:
        """Refuse columns that the tables do not have.

        Args:
            texts: names of their columns of texts.
        """
        for name in self.fields:
            if name not in texts:
                option = "--prompt-field" if name == self.prompt_field else "--mix"
                raise UserError(f"{option} names {name!r}; expected a column of texts: {', '.join(texts)}")


def _point(key: str) -> float:
    """A number in [0, 1) by the key."""
    return int.from_bytes(hashlib.sha256(f"mix\0{key}".encode()).digest()[:8], "big") / 2**64
