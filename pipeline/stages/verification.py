"""The settings of verification: which generators and which judge, checked, described, and loaded."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any, TypeVar

import torch

from pez.demo import CLIPS
from pez.errors import UserError
from pez.generators.files import check_generator, find_generator
from pez.models.load import check_model
from pez.models.names import carries_weights, guides_of
from pez.regeneration import Generator, load_generator
from pez.settings import GeneratorPrecision, ModelSettings, Names
from pipeline.description import chosen, model_of
from pipeline.settings import GeneratorSettings, VerifySettings
from pipeline.stages.verified_table import VerifiedTable
from pipeline.table import PromptTable

Chosen = TypeVar("Chosen", bound=GeneratorSettings)


def generator_of(settings: GeneratorSettings, device: str | torch.device, name: str | None = None) -> Generator:
    """A text-to-image model named by the settings.

    Args:
        name: which; default = the first.

    Raises:
        UserError: it does not load, or the device does not support its precision.
    """
    return load_generator(
        name or settings.generators[0],
        device,
        _precision(settings, device),
        settings.verify_scheduler,
        settings.verify_steps,
        settings.guidance,
        settings.verify_batch,
        settings.verify_variant,
        settings.verify_negative_prompt,
    )


def resolved(settings: Chosen) -> Chosen:
    """The settings with absolute paths, because actors have another working directory."""
    changes: dict[str, Any] = {}
    if settings.verify is not None:
        changes["verify"] = tuple(map(_absolute, settings.generators))
    schema, colon, folder = (settings.score_model or "").partition(":")
    if schema == "local-dir" and colon:
        changes["score_model"] = f"local-dir:{Path(folder).expanduser().absolute()}"
    if settings.score_pretrained and (path := Path(settings.score_pretrained).expanduser()).is_file():
        changes["score_pretrained"] = str(path.absolute())
    return dataclasses.replace(settings, **changes)


def _absolute(generator: str) -> str:
    path = Path(generator).expanduser()
    return str(path.absolute()) if generator != "demo" and path.exists() else generator


def check_verification(
    settings: GeneratorSettings, guide: Names, guide_pretrained: Names, device: str | torch.device | None = None
) -> None:
    """Find problems with the settings before any work, and warn if the guide judges its own prompts.

    Args:
        guide: name of the model that the prompts are learned with, or names.
        device: that generates the images, if it is known yet.

    Raises:
        UserError: no generator is named, it is incomplete or not a text-to-image model, the device does not support the
            precision, or there is no such CLIP.
    """
    if settings.verify is None:
        raise UserError("no generator is named; expected --verify demo, ORG/MODEL, a folder or a .safetensors file")
    name, pretrained = score_model(settings, guide)
    check_model(name, pretrained)
    if device is not None:
        _precision(settings, device)
    for generator in settings.generators:
        check_generator(generator, settings.verify_scheduler, settings.verify_variant, settings.guidance)
    if (name, "none" if carries_weights(name) else pretrained) in guides_of(ModelSettings(guide, guide_pretrained)):
        warnings.warn(f"{name} is both guide and judge, so it favors its own prompts", stacklevel=2)


def score_model(settings: GeneratorSettings, guide: Names) -> tuple[str, str]:
    """Name and weights of the judge.

    Args:
        guide: name of the model that the prompts are learned with, or names.

    Raises:
        UserError: an open_clip name without weights.
    """
    name, guides = settings.score_model, (guide,) if isinstance(guide, str) else guide
    if name is None:
        if all(each in CLIPS for each in guides):
            return ("demo" if "demo" not in guides else "demo-judge"), "none"
        if any("bigG" in each or "-g-" in each for each in guides):
            return "ViT-H-14", "laion2b_s32b_b79k"
        return "ViT-bigG-14", "laion2b_s39b_b160k"  # as in the paper
    if settings.score_pretrained is None and not carries_weights(name):
        raise UserError(f"no weights are named for the score model {name}; expected --score-pretrained TAG")
    return name, settings.score_pretrained or "none"


def describe_verification(settings: VerifySettings, guide: Names, device: str) -> dict[str, object]:
    """What determines the added columns, as JSON values, for the fingerprint.

    Raises:
        UserError: the device does not support the precision.
    """
    names = {field.name for field in dataclasses.fields(GeneratorSettings)} - _NOT_OF_THE_GENERATOR
    if not _variant_matters(settings):
        names.remove("verify_variant")
    name, pretrained = score_model(settings, guide)
    return chosen(settings, ["choose_by"]) | {
        "generator": chosen(settings, sorted(names)) | {"verify_precision": _precision(settings, device)},
        "judge": {"model": name, "pretrained": pretrained},
        "device": torch.device(device).type,
    }


_NOT_OF_THE_GENERATOR = {"score_model", "score_pretrained", "verify_batch", "verify_precision"}


def _variant_matters(settings: GeneratorSettings) -> bool:
    """Whether the named variant differs from the weights that are loaded by default."""
    if settings.verify_variant is None:
        return False
    try:
        return any(find_generator(name).variant != settings.verify_variant for name in settings.generators)
    except UserError:  # there are several, and one must be named
        return True


def verified_table(table: PromptTable, settings: VerifySettings, device: str) -> VerifiedTable:
    """The verification of a table, checked against that of an earlier run.

    Raises:
        UserError: the earlier run had other settings, the device does not support the precision, or there is nothing to choose.
    """
    if settings.choose_by == "regeneration" and table.settings.get("method", {}).get("candidates_kept", 1) < 2:
        raise UserError(
            "--choose-by is regeneration, but each row has one prompt; expected prompts learned with --candidates-kept 2"
        )
    about = describe_verification(settings, model_of(table.settings).model, device)
    verified = VerifiedTable(table, about, settings.keep_images)
    verified.check()
    return verified


def _precision(settings: GeneratorSettings, device: str | torch.device) -> GeneratorPrecision:
    cpu = torch.device(device).type == "cpu"
    if cpu and settings.verify_precision == "fp16":
        raise UserError("verify_precision is fp16, which a CPU does not support; expected fp32 or bf16")
    return settings.verify_precision or ("fp32" if cpu else "fp16")
