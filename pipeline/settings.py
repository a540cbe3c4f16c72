"""What a user may choose about a job, importable without torch and Ray."""

import dataclasses
import os
from typing import Literal, Self

from pez.errors import UserError
from pez.settings import GeneratorPrecision, ModelSettings, Scheduler, lanes_for
from pipeline.sources.member_names import KeySplit, MemberNames

Bookkeeping = Literal["inside", "beside"]
InputKind = Literal["tars", "folder", "table"]


@dataclasses.dataclass(frozen=True)
class LearnSettings(ModelSettings):
    """The CLIP, and how many prompts are learned side by side."""

    lanes: int | None = None
    """prompts learned side by side in an actor, a multiple of 16; default = 1024 on a GPU, 64 on a CPU"""

    def __post_init__(self) -> None:
        if self.lanes is not None and (self.lanes < 1 or self.lanes % 16 or self.lanes > _MOST_LANES):
            raise UserError(
                f"lanes is {self.lanes}; expected a multiple of 16, so that prompts do not depend on neighbours, "
                f"of at most {_MOST_LANES}"
            )

    @property
    def side_by_side(self) -> int:
        """Lanes that were chosen, or that `on` chose."""
        assert self.lanes is not None, "chosen for a device"
        return self.lanes

    def on(self, device: str) -> Self:
        """The same, with what is not chosen as it suits a device, named like cpu or cuda:0."""
        settings = super().on(device)
        return settings if settings.lanes is not None else dataclasses.replace(settings, lanes=lanes_for(device))


@dataclasses.dataclass(frozen=True)
class TarSettings:
    """How tars of images are read."""

    image_key: str | None = None
    """extension of the images in the tars, like jpg or 'jpg;png'; default = any usual one"""
    caption_key: str | None = None
    """extension of the captions in the tars, like txt, or a field of JSON, like json:caption; default = txt, text or caption"""
    key_split: KeySplit = "last"
    """dot of a name at which its key ends: at the last photo.1.jpg and photo.2.jpg are two keys; the first is WebDataset's"""
    allow_unfinished_tars: bool = False
    """also take tars that end after a whole member, without the two blocks of zeros that say that nothing is missing"""

    def __post_init__(self) -> None:
        MemberNames(self.image_key, self.caption_key, self.key_split)


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """How folders of images and tables of images are read."""

    input_kind: InputKind | None = None
    """what the input is: tars, a folder of images, or tables (Parquet, CSV, JSON lines) that hold images or name them;
    default = as the names tell"""
    images_per_unit: int = 1000
    """files of a folder that make a unit, with a Parquet of its own"""
    image_column: str | None = None
    """column of a Parquet that holds the images; default = the only one that can"""
    url_column: str | None = None
    """column of a table that holds paths, relative to the table, or URLs of images; default = one called url, path or so"""
    key_column: str | None = None
    """column that holds a key for each row, texts or whole numbers; default = the number of the row"""
    caption_column: str | None = None
    """column that holds the captions; default = one called caption or text"""

    def __post_init__(self) -> None:
        if not 1 <= self.images_per_unit <= 1_000_000:
            raise UserError(f"images_per_unit is {self.images_per_unit}; expected 1 to 1000000")
        if self.image_column is not None and self.url_column is not None:
            raise UserError("image_column and url_column are given; expected one of them")


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """How tables of texts are read."""

    column: str = "prompt"
    """column of the tables that holds the texts"""
    key_column: str | None = None
    """column that holds a key for each row, texts or whole numbers; default = the number of the row"""


@dataclasses.dataclass(frozen=True)
class CaptionSettings(ImageSettings, TarSettings, LearnSettings):
    """What decides the rows, beside the images; a rerun on the same output must have the same."""

    def __post_init__(self) -> None:
        ImageSettings.__post_init__(self)
        TarSettings.__post_init__(self)
        LearnSettings.__post_init__(self)


@dataclasses.dataclass(frozen=True)
class DistillSettings(TextSettings, LearnSettings):
    """What decides the rows of shortened texts, beside the texts; a rerun on the same output must have the same."""


@dataclasses.dataclass(frozen=True)
class PaintSettings:
    """How prompts are painted, and the pictures compared with the originals."""

    verify: str | None = None
    """generate images from each prompt with this text-to-image model and compare them with the original: demo, a hub id,
    a folder in diffusers' format, or a .safetensors file of a whole model"""
    score_model: str | None = None
    """CLIP that compares, like --model; default = another one than the guide: ViT-bigG-14, ViT-H-14 or demo-judge"""
    score_pretrained: str | None = None
    """tag or checkpoint file of an open_clip name"""
    verify_images: int = 1
    """pictures of each prompt"""
    verify_steps: int = 25
    """denoising steps; turbo models want 1 to 4"""
    guidance: float = 9.0
    """scale of classifier-free guidance; turbo models want 0"""
    verify_scheduler: Scheduler = "dpm++"
    """model = the one that the model ships"""
    verify_precision: GeneratorPrecision | None = None
    """of the pictures; default = fp16 on a GPU, fp32 on a CPU. Similarities are always measured in fp32"""
    verify_variant: str | None = None
    """of the model's weights, like fp16; default = the plain ones, or the variant that is there where they are not"""
    verify_seed: int = 0
    """with a row's key, fixes its pictures"""
    verify_batch: int = 8
    """pictures at once; halved where memory runs out"""

    def __post_init__(self) -> None:
        for name in ("verify_images", "verify_steps", "verify_batch"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"{name} is {value}; expected 1 or more")
            if value > 1000:
                raise UserError(f"{name} is {value}; expected 1000 or less")
        if not 0 <= self.guidance <= 1000:
            raise UserError(f"guidance is {self.guidance}; expected 0 or more")


@dataclasses.dataclass(frozen=True)
class VerifySettings(PaintSettings):
    """How prompts are verified; a rerun on the same output must have the same."""

    keep_images: bool = False
    """store the pictures as WebDataset in OUT/_regenerated"""


@dataclasses.dataclass(frozen=True)
class ClusterSettings:
    """How the work is spread; changes no row."""

    actors: int | None = None
    """actors that each hold a model; default = one a GPU, or one for every four CPU cores"""
    gpus_per_actor: float | None = None
    """default = 1 where the cluster has GPUs"""
    cpus_per_actor: float | None = None
    """default = the actor's share of the cores"""
    verify_actors: int | None = None
    """actors that each hold a generator; default = as many as there is room for. They start where the others leave room"""
    gpus_per_verifier: float | None = None
    """default = as an actor's"""
    address: str | None = None
    """of a Ray cluster; default = RAY_ADDRESS, or a Ray of this machine only"""
    attempts: int = 3
    """tries that a shard has before it is given up; a lost node does not count, so more only where actors are killed"""
    shard_timeout: float = 6 * 3600.0
    """seconds after which an actor that is still on one shard is replaced"""
    shards_at_once: int = 4
    """shards that fill an actor's lanes together, so that none is idle while one ends; near the end of a job fewer"""
    parts: int = 1
    """tasks that each shard is cut into: a lost actor loses less, and the last shards are shared"""

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UserError(f"{name} is {value}; expected {least:g} to {most:g}")


def cluster_address(settings: ClusterSettings) -> str | None:
    """The Ray cluster that is meant; None = a Ray of this machine only."""
    address = settings.address or os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


_MOST_LANES = 65_536
_RANGES: dict[str, tuple[float, float]] = {
    "actors": (1, 1e6),
    "gpus_per_actor": (0, 1e3),
    "cpus_per_actor": (0.01, 1e4),
    "verify_actors": (1, 1e6),
    "gpus_per_verifier": (0, 1e3),
    "attempts": (1, 1e6),
    "shard_timeout": (0.01, 1e9),
    "shards_at_once": (1, 1000),
    "parts": (1, 10_000),
}
"""of the cluster's settings: what each may be"""
