"""Prompts back to pictures: does a text-to-image model paint what the prompt was learned from?

Any diffusers text-to-image pipeline paints each prompt, and a second CLIP, which the prompt was not fitted to, compares the
pictures with the original. That is how the paper measures prompts (Wen et al. 2023, arXiv:2302.03668, section 4).

generator = load_generator("stabilityai/stable-diffusion-2-1", "cuda", "fp16")
pictures = generator.images([prompt.text], [seed_for(0, key, 0)])
"""

import hashlib
import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pez.errors import UserError
from pez.generators.files import exchanged, find_generator
from pez.generators.parts import GeneratorFiles, one_line
from pez.models.clip import Clip
from pez.models.quiet import quiet
from pez.settings import GeneratorPrecision, Scheduler

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load_generator(
    name: str,
    device: str | torch.device = "cpu",
    precision: GeneratorPrecision = "fp32",
    scheduler: Scheduler = "dpm++",
    steps: int = 25,
    guidance: float = 9.0,
    batch: int = 8,
    variant: str | None = None,
) -> "Generator":
    """Load a text-to-image model.

    Args:
        name: "demo", a hub id ("stabilityai/stable-diffusion-2-1") or a local folder, in diffusers' format, or a single file of
            safetensors with the whole model.
        scheduler: "model" keeps the one that the model ships.
        steps: denoising steps. Turbo models want 1 to 4, with guidance 0 and scheduler "model".
        guidance: scale of classifier-free guidance; 1 or less = none.
        batch: pictures at once; halved, with a warning, where memory runs out.
        variant: of the weights, like "fp16"; None = the plain ones, or the variant that is there where they are not.

    Raises:
        UserError: no such model, no text-to-image model, or weights that do not load; one line.
    """
    files = find_generator(name, variant)
    try:
        with quiet():
            pipeline = _pipeline_of(files, _DTYPES[precision])
            pipeline.scheduler = exchanged(pipeline.scheduler, scheduler)
            if hasattr(pipeline, "watermark"):  # SDXL's, which is there or not by what else is installed
                pipeline.watermark = None
            pipeline.set_progress_bar_config(disable=True)
            pipeline = pipeline.to(device)
    except torch.OutOfMemoryError as error:
        raise UserError(f"no room for the generator {name!r} on {device}: {one_line(error)}") from error
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, IndexError) as error:
        raise UserError(f"cannot load the generator {name!r}: {one_line(error)}") from error
    return Generator(pipeline, name, torch.device(device), steps, guidance, batch)


def _pipeline_of(files: GeneratorFiles, dtype: torch.dtype) -> Any:
    import diffusers

    options = {"dtype" if _knows_dtype(diffusers.__version__) else "torch_dtype": dtype, **dict.fromkeys(files.without)}
    if files.checkpoint is not None:
        return getattr(diffusers, files.kind).from_single_file(
            str(files.checkpoint), config=str(files.folder), local_files_only=True, **options
        )
    return diffusers.AutoPipelineForText2Image.from_pretrained(
        files.name if files.on_hub else str(files.folder), variant=files.variant, **options
    )


def _knows_dtype(version: str) -> bool:
    """diffusers calls it torch_dtype before, and warns of that name since."""
    return tuple(int(number) for number in version.split(".")[:2]) >= (0, 42)


class Generator:
    """A text-to-image pipeline that paints each prompt as if it were alone.

    Args:
        pipeline: called as diffusers' text-to-image pipelines are.
        batch: pictures at once.
    """

    def __init__(
        self, pipeline: Any, name: str, device: torch.device, steps: int = 25, guidance: float = 9.0, batch: int = 8
    ) -> None:
        self.pipeline, self.name, self.device = pipeline, name, device
        self.steps, self.guidance, self.batch = steps, guidance, batch
        known = inspect.signature(type(pipeline).__call__).parameters.values()
        # Some pipelines know no guidance, and get none; see check_generator.
        self.guided = any(p.name == "guidance_scale" or p.kind == p.VAR_KEYWORD for p in known)

    @torch.no_grad()
    def images(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image | None]:
        """Paint one picture a prompt, in the model's own size.

        Args:
            seeds: one a prompt; a picture depends on its prompt and seed, not on the others.

        Returns:
            RGB pictures; None where the model's safety checker blanked it.

        Raises:
            UserError: a picture that is not made of numbers, as half precision makes of some models.
            torch.OutOfMemoryError: no room for a single picture.
        """
        pictures: list[Image.Image | None] = []
        while len(pictures) < len(prompts):
            part = slice(len(pictures), len(pictures) + self.batch)
            try:
                pictures += self._batch(list(prompts[part]), list(seeds[part]))
            except torch.OutOfMemoryError:
                if self.batch == 1:
                    raise
                smaller = self.batch // 2
                warnings.warn(
                    f"out of memory with {self.batch} pictures at once; continuing with {smaller}", stacklevel=2
                )
                self.batch = smaller
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
        return pictures

    def _batch(self, prompts: list[str], seeds: list[int]) -> list[Image.Image | None]:
        spare = self._rows(len(prompts)) - len(prompts)
        with quiet():
            made = self.pipeline(
                prompt=prompts + prompts[-1:] * spare,
                # On the CPU, one a picture: the same noise on every device and beside any neighbours.
                generator=[torch.Generator().manual_seed(seed) for seed in seeds + seeds[-1:] * spare],
                num_inference_steps=self.steps,
                **({"guidance_scale": self.guidance} if self.guided else {}),
                output_type="np",
            )
        blanked = getattr(made, "nsfw_content_detected", None) or [False] * len(made.images)
        found: list[Image.Image | None] = []
        for prompt, pixels, blank in zip(prompts, made.images, blanked, strict=False):
            if not blank and not np.isfinite(pixels).all():
                raise UserError(f"the picture of {prompt!r} is not a number; expected another precision, fp32 or bf16")
            found.append(None if blank else Image.fromarray((pixels * 255).round().astype(np.uint8)).convert("RGB"))
        return found

    def _rows(self, pictures: int) -> int:
        """How many pictures to compute: matrix libraries take other code paths for other shapes.

        A whole batch on an accelerator. On a CPU whole fours: the bits are the same for any number of them. They are not
        for any number of threads: a pixel may then differ by one of 255.
        """
        return self.batch if self.device.type != "cpu" else min(self.batch, -(-pictures // 4) * 4)


def picture_similarities(clip: Clip, originals: Tensor, pictures: Sequence[Image.Image | None]) -> list[float | None]:
    """How near each picture is to its original.

    Args:
        clip: another one than the prompts were learned with.
        originals: (n, dim) unit features of the originals under this CLIP, one a picture.

    Returns:
        n cosines in full precision; None for a picture that is not there.
    """
    there = [i for i, picture in enumerate(pictures) if picture is not None]
    cosines: list[float | None] = [None] * len(pictures)
    if there:
        features = clip.image_features([picture for picture in pictures if picture is not None])
        for i, cosine in zip(there, (features * originals[there]).sum(-1).tolist(), strict=True):
            cosines[i] = cosine
    return cosines


def seed_for(seed: int, key: str, number: int) -> int:
    """The seed of a key's picture, of 32 bits so that other programs take it too."""
    digest = hashlib.sha256(f"{seed}|{number}|{key}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:4], "big")
