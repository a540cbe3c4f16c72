"""From prompts back to images: does a text-to-image model generate what the prompt was learned from?

A diffusers text-to-image pipeline generates an image from each prompt. The judge, a CLIP that the prompt was not fitted to,
compares it with the original. The paper evaluates prompts this way (Wen et al. 2023, arXiv:2302.03668, section 4).

generator = load_generator("stabilityai/stable-diffusion-2-1", "cuda", "fp16")
images = generator.images([prompt.text], [seed_for(0, key, 0)])
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
from pez.models.joint import AnyClip
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
    negative_prompt: str | None = None,
) -> "Generator":
    """Load a text-to-image model.

    Args:
        name: "demo", a hub id ("stabilityai/stable-diffusion-2-1") or a local folder in diffusers format, or a single
            safetensors file with the whole model.
        scheduler: "model" = the model's own scheduler.
        steps: denoising steps. Turbo models need 1 to 4, with guidance 0 and scheduler "model".
        guidance: scale of classifier-free guidance; 1 or less = none.
        batch: images per batch; halved, with a warning, if memory runs out.
        variant: of the weights, such as "fp16"; None = the plain weights, or the available variant if there are none.
        negative_prompt: what the images should not show; needs guidance above 1.

    Raises:
        UserError: no such model, not a text-to-image model, one that takes no negative prompt, or the weights do not load.
    """
    files = find_generator(name, variant)
    try:
        with quiet():
            pipeline = _pipeline_of(files, _DTYPES[precision])
            pipeline.scheduler = exchanged(pipeline.scheduler, scheduler)
            if hasattr(pipeline, "watermark"):  # SDXL's depends on which packages are installed
                pipeline.watermark = None
            pipeline.set_progress_bar_config(disable=True)
            pipeline = pipeline.to(device)
    except torch.OutOfMemoryError as error:
        raise UserError(f"not enough memory for the generator {name!r} on {device}: {one_line(error)}") from error
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, IndexError) as error:
        raise UserError(f"cannot load the generator {name!r}: {one_line(error)}") from error
    return Generator(pipeline, name, torch.device(device), steps, guidance, batch, negative_prompt)


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
    """Whether diffusers calls the option dtype; older versions call it torch_dtype, newer ones warn about that name."""
    return tuple(int(number) for number in version.split(".")[:2]) >= (0, 42)


class Generator:
    """A text-to-image pipeline whose images do not depend on the other prompts of a batch.

    Args:
        pipeline: a diffusers text-to-image pipeline or a compatible callable.
        batch: images per batch.
        negative_prompt: what the images should not show.

    Raises:
        UserError: the pipeline takes no negative prompt, and there is one.
    """

    def __init__(
        self,
        pipeline: Any,
        name: str,
        device: torch.device,
        steps: int = 25,
        guidance: float = 9.0,
        batch: int = 8,
        negative_prompt: str | None = None,
    ) -> None:
        self.pipeline, self.name, self.device = pipeline, name, device
        self.steps, self.guidance, self.batch = steps, guidance, batch
        self.negative_prompt = negative_prompt
        known = list(inspect.signature(type(pipeline).__call__).parameters.values())
        if negative_prompt is not None and not any(
            p.name == "negative_prompt" or p.kind == p.VAR_KEYWORD for p in known
        ):
            raise UserError(f"the generator {name!r} takes no negative prompt; omit it")
        # Some pipelines take no guidance; see check_generator.
        self.guided = any(p.name == "guidance_scale" or p.kind == p.VAR_KEYWORD for p in known)

    @torch.no_grad()
    def images(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image | None]:
        """Generate one image per prompt, in the model's native size.

        Args:
            seeds: one per prompt; an image depends on its prompt and seed only.

        Returns:
            RGB images; None where the model's safety checker blanked the image.

        Raises:
            UserError: an image contains NaN, which happens with some models in half precision.
            torch.OutOfMemoryError: not enough memory for a single image.
        """
        images: list[Image.Image | None] = []
        while len(images) < len(prompts):
            part = slice(len(images), len(images) + self.batch)
            try:
                images += self._batch(list(prompts[part]), list(seeds[part]))
            except torch.OutOfMemoryError:
                if self.batch == 1:
                    raise
                smaller = self.batch // 2
                warnings.warn(
                    f"out of memory with {self.batch} images per batch; continuing with {smaller}", stacklevel=2
                )
                self.batch = smaller
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
        return images

    def _batch(self, prompts: list[str], seeds: list[int]) -> list[Image.Image | None]:
        spare = self._rows(len(prompts)) - len(prompts)
        with quiet():
            made = self.pipeline(
                prompt=prompts + prompts[-1:] * spare,
                # One CPU generator per image: the same noise on every device and in any batch.
                generator=[torch.Generator().manual_seed(seed) for seed in seeds + seeds[-1:] * spare],
                num_inference_steps=self.steps,
                **({"guidance_scale": self.guidance} if self.guided else {}),
                **(
                    {"negative_prompt": [self.negative_prompt] * (len(prompts) + spare)} if self.negative_prompt else {}
                ),
                output_type="np",
            )
        blanked = getattr(made, "nsfw_content_detected", None) or [False] * len(made.images)
        found: list[Image.Image | None] = []
        for prompt, pixels, blank in zip(prompts, made.images, blanked, strict=False):
            if not blank and not np.isfinite(pixels).all():
                raise UserError(f"the image of {prompt!r} is NaN; try precision fp32 or bf16")
            found.append(None if blank else Image.fromarray((pixels * 255).round().astype(np.uint8)).convert("RGB"))
        return found

    def _rows(self, images: int) -> int:
        """How many images to compute; matrix libraries take different code paths for different shapes.

        On an accelerator, a whole batch. On a CPU, a multiple of 4: results are bitwise the same for any multiple of 4. They
        are not for other numbers of threads: a pixel may then differ by one level of 255.
        """
        return self.batch if self.device.type != "cpu" else min(self.batch, -(-images // 4) * 4)


def image_similarities(clip: AnyClip, originals: Tensor, images: Sequence[Image.Image | None]) -> list[float | None]:
    """The similarity of each generated image to its original.

    Args:
        clip: the judge, or the guide.
        originals: (n, dim) unit features of the originals under the judge, one per image.

    Returns:
        n cosines in full precision; None for a missing image.
    """
    there = [i for i, image in enumerate(images) if image is not None]
    cosines: list[float | None] = [None] * len(images)
    if there:
        features = clip.image_features([image for image in images if image is not None])
        for i, cosine in zip(there, (features * originals[there]).sum(-1).tolist(), strict=True):
            cosines[i] = cosine
    return cosines


def seed_for(seed: int, key: str, number: int) -> int:
    """The seed of a key's image; 32 bits, so that other programs accept it."""
    digest = hashlib.sha256(f"{seed}|{number}|{key}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:4], "big")
