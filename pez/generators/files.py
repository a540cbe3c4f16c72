"""Check a text-to-image model without loading its weights: what it is, whether it is complete, and how to load it.

A model is a folder in diffusers format, a hub repository in that format, or a single safetensors file as used by A1111 and
ComfyUI. Its index, configurations, tokenizers and schedulers are loaded; of the weights, only the file headers are read. No
code that comes with a model is ever run.
"""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import torch

from pez.demo import GENERATOR
from pez.errors import UserError
from pez.generators.parts import GeneratorFiles, Shapes, looked_through, one_line, pipeline_class, read_object
from pez.models.quiet import quiet
from pez.models.safetensors_head import damage, shapes_of
from pez.settings import Scheduler

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
}

_CONFIGURATIONS = ["*.json", "*.txt", "*.model"]
_PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


def find_generator(name: str, variant: str | None = None) -> GeneratorFiles:
    """Find and check the files of a model.

    Args:
        name: "demo", a hub id, a folder or a safetensors file.
        variant: of the weights, as in `diffusion_pytorch_model.fp16.safetensors`; None = the plain weights, or the available
            variant if there are none.

    Raises:
        UserError: no such model, not a text-to-image model, or an incomplete one.
    """
    try:
        import diffusers  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(f"no diffusers ({one_line(error)}); install it with pip install -e '.[verify]'") from error
    if not name.strip():
        raise UserError(f"the generator's name is {name!r}; expected demo, ORG/MODEL, a folder or a .safetensors file")
    path = GENERATOR if name == "demo" else Path(name).expanduser()
    if path.is_file():
        if variant is not None:
            raise UserError(f"{name} is a single file, which has no variants; expected no variant")
        files = _of_checkpoint(name, path)
    elif path.is_dir():
        files = _of_folder(name, path)
    else:
        files = _of_hub(name)
    with quiet():
        return looked_through(files, variant)


def check_generator(
    name: str, scheduler: Scheduler = "dpm++", variant: str | None = None, guidance: float = 9.0
) -> None:
    """Check a choice of generator before any work, without loading its weights.

    Raises:
        UserError: as `find_generator`; a scheduler that cannot be replaced; guidance for a model that takes none.
    """
    files = find_generator(name, variant)
    with quiet():
        _expect_scheduler(files, scheduler)
        if guidance > 0 and "guidance_scale" not in inspect.signature(pipeline_class(files.kind).__call__).parameters:
            raise UserError(f"{name!r} is a {files.kind}, which takes no guidance; expected guidance 0")


def exchanged(scheduler: Any, wanted: Scheduler) -> Any:
    """Another scheduler with the model's configuration, so that prediction type and noise schedule remain as trained."""
    import diffusers

    if wanted == "model":
        return scheduler
    kind, options = SCHEDULERS[wanted]
    return getattr(diffusers, kind).from_config(scheduler.config, **options)


def _of_folder(name: str, folder: Path) -> GeneratorFiles:
    names = frozenset(p.relative_to(folder).as_posix() for p in folder.glob("*/*")) | {p.name for p in folder.iterdir()}
    if "model_index.json" not in names:
        raise UserError(
            f"no pipeline in {folder}{_instead(names)}; expected a diffusers folder with a model_index.json"
        )
    return GeneratorFiles(name, _kind(read_object(folder / "model_index.json", name), name), folder, names)


def _instead(names: frozenset[str]) -> str:
    """What a folder without a pipeline seems to contain."""
    if "adapter_config.json" in names or any("lora" in n.lower() and n.endswith(".safetensors") for n in names):
        return ", but a LoRA, which only modifies another model"
    if "open_clip_config.json" in names:
        return ", but a CLIP of open_clip"
    if "config.json" in names:
        return ", but a single model with a config.json"
    files = sorted(n for n in names if n.endswith(".safetensors"))
    return f", but {files[0]}, which you can pass directly" if files else ""


def _of_hub(name: str) -> GeneratorFiles:
    if name == "demo":
        raise UserError(f"no demo generator in {GENERATOR}; train it with python -m jobs.train_demo, or reinstall")
    if name.startswith((".", "/", "~")) or "\\" in name or name.count("/") != 1:
        raise UserError(
            f"no folder or file {name!r}; expected demo, a hub id like ORG/MODEL, a folder in diffusers format,"
            " or a .safetensors file"
        )
    index = _from_hub(name, "model_index.json")
    kind = _kind(read_object(index, name), name)
    folder, names = _configurations(name)
    if names is None:
        return dataclasses.replace(_of_folder(name, folder), kind=kind)
    return GeneratorFiles(name, kind, folder, names, on_hub=True)


def _configurations(name: str) -> tuple[Path, frozenset[str] | None]:
    """A folder with a hub model's configurations, and the names of its files; None = offline, use what is in the cache."""
    import huggingface_hub as hub

    try:
        with quiet():
            folder = Path(hub.snapshot_download(name, allow_patterns=_CONFIGURATIONS))
    except Exception as error:
        raise UserError(f"cannot get the configurations of {name!r}: {one_line(error)}") from error
    try:
        return folder, frozenset(hub.list_repo_files(name))
    except Exception:  # offline: use what is in the cache
        return folder, None


def _from_hub(name: str, file: str) -> Path:
    from huggingface_hub import errors, hf_hub_download

    try:
        with quiet():
            return Path(hf_hub_download(name, file))
    except errors.GatedRepoError as error:
        raise UserError(f"{name!r} is gated; accept its license on the hub and log in with `hf auth login`") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"no model {name!r} on the hub, and no such folder; expected demo, ORG/MODEL or a path"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise UserError(
            f"no folder {name!r}, no such model in the cache, and the hub does not answer; expected demo, ORG/MODEL or a path"
        ) from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"no {file} in {name!r}; expected a model in diffusers format") from error
    except Exception as error:  # network errors differ between versions of the hub's client
        raise UserError(f"cannot query the hub for {name!r}: {one_line(error)}") from error


def _of_checkpoint(name: str, file: Path) -> GeneratorFiles:
    """A single file with all weights; its configurations are next to it, or those of the model's family on the hub."""
    if file.suffix.lower() in _PICKLES:
        raise UserError(
            f"{name} is a pickle, which may run code, so it is not opened; expected .safetensors: convert it in a place "
            "where that is safe, for example with the checkpoint merger of A1111"
        )
    if problem := damage(file):
        raise UserError(f"{name} {problem}; expected a hub id, a folder in diffusers format, or a .safetensors file")
    shapes = shapes_of(file)
    _expect_whole(name, shapes)
    folder = _beside(file) or _of_family(name, shapes)
    files = _of_folder(name, folder)
    if not hasattr(pipeline_class(files.kind), "from_single_file"):
        raise UserError(f"{name}: diffusers can load a {files.kind} only from a folder; expected a folder or a hub id")
    return dataclasses.replace(files, checkpoint=file)


def _expect_whole(name: str, shapes: Shapes) -> None:
    """Require a text encoder, a denoiser and a decoder in a checkpoint."""
    if any("lora" in key.lower() for key in shapes):
        raise UserError(f"{name} is a LoRA, which only modifies another model; merge it into one first")
    parts = {
        "denoiser": ("model.diffusion_model.",),
        "text encoder": ("cond_stage_model.", "conditioner.", "text_encoders."),
        "VAE": ("first_stage_model.", "vae."),
    }
    missing = [part for part, begin in parts.items() if not any(key.startswith(begin) for key in shapes)]
    if missing:
        found = ", ".join(sorted(shapes)[:2]) or "nothing"
        raise UserError(
            f"{name} has no {' and no '.join(missing)} (it has {found}); expected the checkpoint of a complete "
            "text-to-image model, as used by A1111 and ComfyUI"
        )


def _beside(file: Path) -> Path | None:
    """A folder with configurations in diffusers format: one named after the file, or the file's own folder."""
    return next((f for f in (file.with_suffix(""), file.parent) if (f / "model_index.json").is_file()), None)


def _of_family(name: str, shapes: Shapes) -> Path:
    from diffusers.loaders.single_file_utils import fetch_diffusers_config

    family = fetch_diffusers_config({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    origin = family["pretrained_model_name_or_path"]
    try:
        _from_hub(origin, "model_index.json")
        return _configurations(origin)[0]
    except ValueError as error:
        raise UserError(
            f"{name} needs the configurations of {origin}, which are neither in the cache nor available from the hub "
            f"({one_line(error)}); connect to the network, or put that model's model_index.json and configurations into a "
            f"folder {Path(name).stem}/ next to it"
        ) from error


def _kind(index: dict[str, Any], name: str) -> str:
    """The name of the pipeline; it must be a text-to-image one."""
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    kind = index.get("_class_name")
    if isinstance(kind, list):
        raise UserError(
            f"the model_index.json of {name!r} names a pipeline with custom code, {kind}; code that comes with a model is"
            " never run, expected a diffusers pipeline"
        )
    known = {found.__name__ for found in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values() if "Control" not in found.__name__}
    known -= {k for k in known if "num_frames" in inspect.signature(pipeline_class(k).__call__).parameters}
    if not isinstance(kind, str) or kind not in known:
        what = f"{name!r} is a {kind}" if kind else f"the model_index.json of {name!r} names no pipeline"
        raise UserError(f"{what}; expected a text-to-image model, such as a StableDiffusionPipeline")
    return kind


def _expect_scheduler(files: GeneratorFiles, scheduler: Scheduler) -> None:
    import diffusers

    if scheduler == "model":
        return
    origin = read_object(files.folder / "model_index.json", files.name).get("scheduler") or [None, None]
    kind = getattr(diffusers, origin[1] or "", None)
    if kind is None:
        raise UserError(
            f"{files.name!r} has the scheduler {origin[1]}, which cannot be replaced; expected scheduler model"
        )
    own = kind.from_pretrained(files.folder, subfolder="scheduler", local_files_only=True)
    if SCHEDULERS[scheduler][0] not in {found.__name__ for found in own.compatibles}:
        raise UserError(
            f"{files.name!r} has the scheduler {origin[1]}, which {scheduler} cannot replace; expected scheduler model"
        )
    try:
        exchanged(own, scheduler)
    except Exception as error:
        raise UserError(
            f"{files.name!r} has a scheduler that {scheduler} cannot replace: {one_line(error)}; expected scheduler model"
        ) from error
