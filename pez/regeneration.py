"""Prompts back to pictures: does a text-to-image model paint what the prompt was learned from?

Any diffusers text-to-image pipeline paints each prompt, and a second CLIP, which the prompt was not fitted to, compares the
pictures with the original. That is how the paper measures prompts (Wen et al. 2023, arXiv:2302.03668, section 4).

generator = load_generator("stabilityai/stable-diffusion-2-1", "cuda", "fp16")
pictures = generator.images([prompt.text], [seed_for(0, key, 0)])
"""

import contextlib
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pez.clip import Clip
from pez.demo import GENERATOR
from pez.settings import GeneratorPrecision, Scheduler

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
}


def load_generator(
    name: str,
    device: str | torch.device = "cpu",
    precision: GeneratorPrecision = "fp32",
    scheduler: Scheduler = "dpm++",
    steps: int = 25,
    guidance: float = 9.0,
    batch: int = 8,
) -> "Generator":
    """Load a text-to-image model.

    Args:
        name: "demo", a hub id ("stabilityai/stable-diffusion-2-1") or a local folder, in diffusers' format.
        scheduler: "model" keeps the one that the model ships.
        steps: denoising steps. Turbo models want 1 to 4, with guidance 0 and scheduler "model".
        guidance: scale of classifier-free guidance; 1 or less = none.
        batch: pictures at once; halved, with a warning, where memory runs out.

    Raises:
        ValueError: no such model, no text-to-image model, or weights that do not load; one line.
    """
    check_generator(name, scheduler)
    import diffusers

    try:
        with _quiet():
            pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(
                str(GENERATOR) if name == "demo" else name, torch_dtype=_DTYPES[precision]
            )
            if scheduler != "model":
                kind, options = _SCHEDULERS[scheduler]
                # From the model's own configuration: what it predicts, and for which noise, stays as it was trained.
                pipeline.scheduler = getattr(diffusers, kind).from_config(pipeline.scheduler.config, **options)
            pipeline.set_progress_bar_config(disable=True)
            pipeline = pipeline.to(device)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(f"cannot load the generator {name!r}: {_one_line(error)}") from error
    return Generator(pipeline, name, torch.device(device), steps, guidance, batch)


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

    @torch.no_grad()
    def images(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image | None]:
        """Paint one picture a prompt, in the model's own size.

        Args:
            seeds: one a prompt; a picture depends on its prompt and seed, not on the others.

        Returns:
            RGB pictures; None where the model's safety checker blanked it.

        Raises:
            ValueError: a picture that is not made of numbers, as half precision makes of some models.
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
                    f"out of memory with {self.batch} pictures at once; going on with {smaller}", stacklevel=2
                )
                self.batch = smaller
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
        return pictures

    def _batch(self, prompts: list[str], seeds: list[int]) -> list[Image.Image | None]:
        spare = self._rows(len(prompts)) - len(prompts)
        with _quiet():
            made = self.pipeline(
                prompt=prompts + prompts[-1:] * spare,
                # On the CPU, one a picture: the same noise on every device and beside any neighbours.
                generator=[torch.Generator().manual_seed(seed) for seed in seeds + seeds[-1:] * spare],
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                output_type="np",
            )
        blanked = getattr(made, "nsfw_content_detected", None) or [False] * len(made.images)
        found: list[Image.Image | None] = []
        for prompt, pixels, blank in zip(prompts, made.images, blanked, strict=False):
            if not blank and not np.isfinite(pixels).all():
                raise ValueError(f"the picture of {prompt!r} is not a number; expected another precision, fp32 or bf16")
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


def check_generator(name: str, scheduler: Scheduler = "dpm++") -> None:
    """Find what is wrong with a choice of generator from its configuration alone, without its weights.

    Raises:
        ValueError: no such model, a folder without a pipeline, not a text-to-image model, or one whose scheduler cannot be
            exchanged; one line.
    """
    try:
        with _quiet():
            import diffusers
            from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING
    except ImportError as error:
        raise ValueError(f"no diffusers ({_one_line(error)}); install it with pip install -e '.[verify]'") from error
    config = _index(name)
    kind = config.get("_class_name")
    known = {found.__name__ for found in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values() if "Control" not in found.__name__}
    if kind not in known:
        raise ValueError(f"{name!r} is a {kind}; expected a text-to-image model, like a StableDiffusionPipeline")
    if scheduler == "model":
        return
    own = (config.get("scheduler") or [None, None])[1]
    wanted = _SCHEDULERS[scheduler][0]
    if own is None or not hasattr(diffusers, own):
        raise ValueError(f"{name!r} has the scheduler {own}, which cannot be exchanged; expected scheduler model")
    if wanted not in {found.__name__ for found in getattr(diffusers, own)().compatibles}:
        raise ValueError(
            f"{name!r} has the scheduler {own}, which {scheduler} cannot replace; expected scheduler model"
        )


def _index(name: str) -> dict[str, Any]:
    """A pipeline's model_index.json."""
    folder = GENERATOR if name == "demo" else Path(name)
    if folder.is_dir():
        file = folder / "model_index.json"
        if not file.is_file():
            raise ValueError(f"no pipeline in {folder}; expected a diffusers folder with a model_index.json")
        config = _read(file, name)
        for part, origin in config.items():
            if isinstance(origin, list) and origin[:1] != [None] and not (folder / part).is_dir():
                raise ValueError(f"no {part} in {folder}; its model_index.json names one: copy the whole folder")
        return config
    if folder.exists():
        raise ValueError(f"{name} is a file; expected a hub id or a folder in diffusers' format")
    if name == "demo":
        raise ValueError(f"no demo generator in {folder}; train it with python -m jobs.train_demo, or install again")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ValueError(
            f"no folder {name!r}; expected demo, a hub id like ORG/MODEL, or a folder in diffusers' format"
        )
    return _read(_download(name), name)


def _download(name: str) -> Path:
    from huggingface_hub import errors, hf_hub_download

    try:
        with _quiet():
            return Path(hf_hub_download(name, "model_index.json"))
    except errors.GatedRepoError as error:
        raise ValueError(f"{name!r} is gated; accept its licence on the hub and log in with `hf auth login`") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ValueError(
            f"no model {name!r} on the hub, and no such folder; expected demo, ORG/MODEL or a path"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise ValueError(
            f"no folder {name!r}, no such model in the cache, and the hub does not answer; expected demo, ORG/MODEL or a path"
        ) from error
    except errors.EntryNotFoundError as error:
        raise ValueError(f"no model_index.json in {name!r}; expected a model in diffusers' format") from error
    except Exception as error:  # each version of the hub's client has its own errors of the network
        raise ValueError(f"cannot ask the hub for {name!r}: {_one_line(error)}") from error


def _read(file: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the model_index.json of {name!r}: {_one_line(error)}") from error
    if not isinstance(config, dict):
        raise ValueError(f"the model_index.json of {name!r} is a {type(config).__name__}; expected an object")
    return config


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """diffusers and transformers tell at length of what is as it should be, and draw bars."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            _no_bars()
            yield
    finally:
        logging.disable(before)


def _no_bars() -> None:
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
