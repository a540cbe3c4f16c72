"""Settings of a job, importable without torch and Ray."""

import dataclasses
import os
from typing import Literal, Self

from pez.errors import UserError
from pez.settings import GeneratorPrecision, ModelSettings, Names, Scheduler, lanes_for
from pipeline.sources.member_names import KeySplit, MemberNames

Bookkeeping = Literal["inside", "beside"]
InputKind = Literal["tars", "folder", "table"]
ChooseBy = Literal["similarity", "regeneration"]


@dataclasses.dataclass(frozen=True)
class LearnSettings(ModelSettings):
    """The CLIP and the number of lanes."""

    lanes: int | None = None
    """prompts learned side by side per actor, a multiple of 16; default = 1024 on a GPU, 64 on a CPU"""

    def __post_init__(self) -> None:
        ModelSettings.__post_init__(self)
        if self.lanes is not None and (self.lanes < 1 or self.lanes % 16 or self.lanes > _MOST_LANES):
            raise UserError(
                f"lanes is {self.lanes}; expected a multiple of 16, so that prompts do not depend on each other, "
                f"up to {_MOST_LANES}"
            )

    @property
    def side_by_side(self) -> int:
        """The number of lanes; must have been chosen by the user or by `on`."""
        assert self.lanes is not None, "chosen for a device"
        return self.lanes

    def on(self, device: str) -> Self:
        """These settings with defaults filled in for a device such as cpu or cuda:0."""
        settings = super().on(device)
        return settings if settings.lanes is not None else dataclasses.replace(settings, lanes=lanes_for(device))


@dataclasses.dataclass(frozen=True)
class TarSettings:
    """How to read tars of images."""

    image_key: str | None = None
    """extension of the images in the tars, such as jpg or 'jpg;png'; default = any common one"""
    caption_key: str | None = None
    """extension of the captions in the tars, such as txt, or a JSON field, such as json:caption; default = txt, text or
    caption"""
    key_split: KeySplit = "last"
    """the dot that ends the key of a file name. last: photo.1.jpg and photo.2.jpg have two keys; first: one key, as in
    WebDataset"""
    allow_unfinished_tars: bool = False
    """accept tars that end after a complete member but lack the end-of-archive marker (two blocks of zeros)"""

    def __post_init__(self) -> None:
        MemberNames(self.image_key, self.caption_key, self.key_split)


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """How to read folders of images and tables of images."""

    input_kind: InputKind | None = None
    """kind of the input: tars, a folder of images, or tables (Parquet, CSV, JSON lines) that contain images or their paths
    or URLs; default = detected from the names of the files"""
    images_per_unit: int = 1000
    """number of files of a folder per unit; each unit has its own Parquet file"""
    image_column: str | None = None
    """Parquet column with the images; default = the only one that can contain them"""
    url_column: str | None = None
    """column of a table with URLs of images, or paths relative to the table; default = the only one with a name like url or
    path"""
    key_column: str | None = None
    """column with the key of each row, texts or integers; default = the row number"""
    caption_column: str | None = None
    """column with the captions; default = one called caption or text"""

    def __post_init__(self) -> None:
        if not 1 <= self.images_per_unit <= 1_000_000:
            raise UserError(f"images_per_unit is {self.images_per_unit}; expected 1 to 1000000")
        if self.image_column is not None and self.url_column is not None:
            raise UserError("image_column and url_column are given; expected one of them")


@dataclasses.dataclass(frozen=True)
class GroupSettings:
    """How to group images that share a prompt."""

    group_by: str | None = None
    """learn one prompt per group of images, across all input files: folder, key:REGEX (a part of the key), json:FIELD (of the
    JSON beside each image) or column:NAME (of a table)"""
    groups_per_unit: int = 1000
    """about how many groups share a Parquet file"""
    incomplete_groups: bool = False
    """learn groups without the images of input files that cannot be read; by default no group is learned then"""

    def __post_init__(self) -> None:
        if not 1 <= self.groups_per_unit <= 100_000:
            raise UserError(f"groups_per_unit is {self.groups_per_unit}; expected 1 to 100000")


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """How to read tables of texts."""

    column: str = "prompt"
    """column with the texts"""
    key_column: str | None = None
    """column with the key of each row, texts or integers; default = the row number"""


@dataclasses.dataclass(frozen=True)
class CaptionSettings(ImageSettings, TarSettings, LearnSettings):
    """Settings that determine the rows for images; a rerun on the same output must use the same ones."""

    caption_weight: float = 0.0
    """weight of an image's caption in its target, from 0 to below 1; the image has the rest"""

    def __post_init__(self) -> None:
        if not 0 <= self.caption_weight < 1:
            raise UserError(f"caption_weight is {self.caption_weight}; expected 0 to below 1")
        ImageSettings.__post_init__(self)
        TarSettings.__post_init__(self)
        LearnSettings.__post_init__(self)


@dataclasses.dataclass(frozen=True)
class DistillSettings(TextSettings, LearnSettings):
    """Settings that determine the rows for texts; a rerun on the same output must use the same ones."""

    keep: float | None = None
    """find the fewest tokens, up to --tokens, whose similarity to the text is at least this, such as 0.95"""

    def __post_init__(self) -> None:
        LearnSettings.__post_init__(self)
        if self.keep is not None and not 0 < self.keep <= 1:
            raise UserError(f"keep is {self.keep}; expected more than 0, up to 1")


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """How to generate images from prompts."""

    verify: Names | None = None
    """text-to-image model that generates images from each prompt, to compare with the original: demo, a hub id, a folder
    in diffusers format, or a .safetensors file of a complete model; several compare how prompts transfer"""
    verify_images: int = 1
    """images per prompt"""
    verify_steps: int = 25
    """denoising steps; turbo models need 1 to 4"""
    guidance: float = 9.0
    """scale of classifier-free guidance; turbo models need 0"""
    verify_negative_prompt: str | None = None
    """what the images should not show, such as a prompt learned by pez invert from other images; needs guidance above 1"""
    verify_scheduler: Scheduler = "dpm++"
    """noise scheduler; model = the model's own"""
    verify_precision: GeneratorPrecision | None = None
    """precision of the generator; default = fp16 on a GPU, fp32 on a CPU. Similarities are always measured in fp32"""
    verify_variant: str | None = None
    """variant of the weights, such as fp16; default = the plain weights, or the available variant if there are none"""
    verify_seed: int = 0
    """together with the key of a row, determines its images"""
    verify_batch: int = 8
    """images per batch; halved if memory runs out"""

    def __post_init__(self) -> None:
        if self.verify is not None and not isinstance(self.verify, str):  # a list of JSON, or of one word
            several = tuple(self.verify)
            object.__setattr__(self, "verify", several[0] if len(several) == 1 else several)
            if again := next((name for name in several if several.count(name) > 1), None):
                raise UserError(f"verify names {again} twice; expected different generators")
        for name in ("verify_images", "verify_steps", "verify_batch"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"{name} is {value}; expected 1 or more")
            if value > 1000:
                raise UserError(f"{name} is {value}; expected 1000 or less")
        if not 0 <= self.guidance <= 1000:
            raise UserError(f"guidance is {self.guidance}; expected 0 or more")
        if self.verify_negative_prompt is not None and self.guidance <= 1:
            raise UserError(
                f"verify_negative_prompt has no effect with guidance {self.guidance:g}; expected more than 1"
            )

    @property
    def generators(self) -> tuple[str, ...]:
        """The names of the generators."""
        return () if self.verify is None else (self.verify,) if isinstance(self.verify, str) else self.verify

    @property
    def generator_name(self) -> str:
        """`ORG/MODEL + ORG/OTHER`."""
        return " + ".join(self.generators)


@dataclasses.dataclass(frozen=True)
class GeneratorSettings(GenerationSettings):
    """How to generate images from prompts and compare them with the originals."""

    score_model: str | None = None
    """the judge, the CLIP that compares them, as for --model; default = one that differs from the guide: ViT-bigG-14,
    ViT-H-14 or demo-judge"""
    score_pretrained: str | None = None
    """pretrained tag or checkpoint file of the judge, for an open_clip name"""


@dataclasses.dataclass(frozen=True)
class VerifySettings(GeneratorSettings):
    """Settings of verification; a rerun on the same output must use the same ones."""

    choose_by: ChooseBy = "similarity"
    """with several candidates kept for each image: similarity = the prompt that was learned; regeneration = the one whose
    generated images are most similar to the original under the guide"""
    keep_images: bool = False
    """store the generated images as WebDataset in OUT/_regenerated"""


@dataclasses.dataclass(frozen=True)
class ClusterSettings:
    """How the work is distributed; does not change any row."""

    actors: int | None = None
    """number of actors, each with one model; default = one per GPU, or one per four CPU cores"""
    min_actors: int | None = None
    """on a cluster that grows and shrinks: actors to keep while no task waits; idle ones above end after a minute, so that
    their nodes can go; default = all"""
    gpus_per_actor: float | None = None
    """default = 1 if the cluster has GPUs"""
    cpus_per_actor: float | None = None
    """default = an equal share of the cores"""
    verify_actors: int | None = None
    """number of actors with a generator; default = as many as fit. They start where the other actors leave room"""
    gpus_per_verifier: float | None = None
    """default = as gpus-per-actor"""
    address: str | None = None
    """address of a Ray cluster; default = RAY_ADDRESS, or a local Ray on this machine"""
    attempts: int = 3
    """attempts per shard before giving up; a lost node does not count, so increase it only if actors get killed"""
    shard_timeout: float = 6 * 3600.0
    """seconds on one shard after which an actor is replaced"""
    shards_at_once: int = 4
    """shards that share an actor's lanes, so that no lane is idle while a shard ends; fewer near the end of a job"""
    parts: int = 1
    """tasks per shard; with more, a lost actor loses less work, and the last shards are shared between actors"""

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UserError(f"{name} is {value}; expected {least:g} to {most:g}")
        if self.min_actors is not None and self.actors is not None and self.min_actors > self.actors:
            raise UserError(f"min_actors is {self.min_actors}; expected at most the {self.actors} actors")


def cluster_address(settings: ClusterSettings) -> str | None:
    """The Ray cluster to use; None = a local Ray on this machine."""
    address = settings.address or os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


_MOST_LANES = 65_536
_RANGES: dict[str, tuple[float, float]] = {
    "actors": (1, 1e6),
    "min_actors": (0, 1e6),
    "gpus_per_actor": (0, 1e3),
    "cpus_per_actor": (0.01, 1e4),
    "verify_actors": (1, 1e6),
    "gpus_per_verifier": (0, 1e3),
    "attempts": (1, 1e6),
    "shard_timeout": (0.01, 1e9),
    "shards_at_once": (1, 1000),
    "parts": (1, 10_000),
}
"""allowed range of each cluster setting"""
