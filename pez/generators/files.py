"""What can be known of a text-to-image model without its weights: that it is one, that it is whole, and how it is loaded.

A model is a folder in diffusers' format, the same on the hub, or a single file of safetensors as A1111 and ComfyUI keep theirs.
Its index, configurations, tokenizers and schedulers are loaded; of the weights, the files' heads are read. Nothing that comes
with a model is run as code.
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
    """Look a model through.

    Args:
        name: "demo", a hub id, a folder or a file of safetensors.
        variant: of the weights, as in `diffusion_pytorch_model.fp16.safetensors`; None = the plain ones, or the variant that
            is there where they are not.

    Raises:
        UserError: no such model, no text-to-image model, or one that is not whole; one line.
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
            raise UserError(f"{name} is one file and has no variants; expected no variant")
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
    """Find what is wrong with a choice of generator before any work, without loading its weights.

    Raises:
        UserError: as `find_generator` does; a scheduler that cannot be exchanged; guidance of a model that knows none.
    """
    files = find_generator(name, variant)
    with quiet():
        _expect_scheduler(files, scheduler)
        if guidance > 0 and "guidance_scale" not in inspect.signature(pipeline_class(files.kind).__call__).parameters:
            raise UserError(f"{name!r} is a {files.kind}, which knows no guidance; expected guidance 0")


def exchanged(scheduler: Any, wanted: Scheduler) -> Any:
    """Another scheduler with the model's own configuration: what it predicts, and for which noise, stays as it was trained."""
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
    """What a folder without a pipeline seems to be."""
    if "adapter_config.json" in names or any("lora" in n.lower() and n.endswith(".safetensors") for n in names):
        return ", but a LoRA, which only changes another model"
    if "open_clip_config.json" in names:
        return ", but a CLIP of open_clip"
    if "config.json" in names:
        return ", but a single model with a config.json"
    files = sorted(n for n in names if n.endswith(".safetensors"))
    return f", but {files[0]}, which can be named itself" if files else ""


def _of_hub(name: str) -> GeneratorFiles:
    if name == "demo":
        raise UserError(f"no demo generator in {GENERATOR}; train it with python -m jobs.train_demo, or install again")
    if name.startswith((".", "/", "~")) or "\\" in name or name.count("/") != 1:
        raise UserError(
            f"no folder or file {name!r}; expected demo, a hub id like ORG/MODEL, a folder in diffusers' format,"
            " or a .safetensors file"
        )
    index = _from_hub(name, "model_index.json")
    kind = _kind(read_object(index, name), name)
    folder, names = _configurations(name)
    if names is None:
        return dataclasses.replace(_of_folder(name, folder), kind=kind)
    return GeneratorFiles(name, kind, folder, names, on_hub=True)


def _configurations(name: str) -> tuple[Path, frozenset[str] | None]:
    """A folder with a hub model's configurations, and the names of its files; None where the hub does not tell: it is what
    the cache has."""
    import huggingface_hub as hub

    try:
        with quiet():
            folder = Path(hub.snapshot_download(name, allow_patterns=_CONFIGURATIONS))
    except Exception as error:
        raise UserError(f"cannot get the configurations of {name!r}: {one_line(error)}") from error
    try:
        return folder, frozenset(hub.list_repo_files(name))
    except Exception:  # offline: what is in the cache is what there is
        return folder, None


def _from_hub(name: str, file: str) -> Path:
    from huggingface_hub import errors, hf_hub_download

    try:
        with quiet():
            return Path(hf_hub_download(name, file))
    except errors.GatedRepoError as error:
        raise UserError(f"{name!r} is gated; accept its licence on the hub and log in with `hf auth login`") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"no model {name!r} on the hub, and no such folder; expected demo, ORG/MODEL or a path"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise UserError(
            f"no folder {name!r}, no such model in the cache, and the hub does not answer; expected demo, ORG/MODEL or a path"
        ) from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"no {file} in {name!r}; expected a model in diffusers' format") from error
    except Exception as error:  # each version of the hub's client has its own errors of the network
        raise UserError(f"cannot ask the hub for {name!r}: {one_line(error)}") from error


def _of_checkpoint(name: str, file: Path) -> GeneratorFiles:
    """A file of all weights, with the configurations that lie beside it, or those of the model's family on the hub."""
    if file.suffix.lower() in _PICKLES:
        raise UserError(
            f"{name} is a pickle, which may run code, and is not opened; expected .safetensors: convert it once, where that "
            "may happen, as with the checkpoint merger of A1111"
        )
    if problem := damage(file):
        raise UserError(f"{name} {problem}; expected a hub id, a folder in diffusers' format, or a .safetensors file")
    shapes = shapes_of(file)
    _expect_whole(name, shapes)
    folder = _beside(file) or _of_family(name, shapes)
    files = _of_folder(name, folder)
    if not hasattr(pipeline_class(files.kind), "from_single_file"):
        raise UserError(f"{name}: diffusers loads a {files.kind} from a folder only; expected a folder or a hub id")
    return dataclasses.replace(files, checkpoint=file)


def _expect_whole(name: str, shapes: Shapes) -> None:
    """See whether a checkpoint holds a text encoder, a denoiser and a decoder."""
    if any("lora" in key.lower() for key in shapes):
        raise UserError(f"{name} is a LoRA, which only changes another model; expected a model that it is merged into")
    parts = {
        "denoiser": ("model.diffusion_model.",),
        "text encoder": ("cond_stage_model.", "conditioner.", "text_encoders."),
        "VAE": ("first_stage_model.", "vae."),
    }
    missing = [part for part, begin in parts.items() if not any(key.startswith(begin) for key in shapes)]
    if missing:
        found = ", ".join(sorted(shapes)[:2]) or "nothing"
        raise UserError(
            f"{name} holds no {' and no '.join(missing)} (it holds {found}); expected the checkpoint of a whole "
            "text-to-image model, as A1111 and ComfyUI load it"
        )


def _beside(file: Path) -> Path | None:
    """A folder of configurations in diffusers' format: of the file's name, or the one that it lies in."""
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
            f"{name} needs the configurations of {origin}, which are neither in the cache nor to be had from the hub "
            f"({one_line(error)}); expected network, or a folder {Path(name).stem}/ beside it with that model's "
            "model_index.json and configurations"
        ) from error


def _kind(index: dict[str, Any], name: str) -> str:
    """The pipeline's name, if it is of the text-to-image kind."""
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    kind = index.get("_class_name")
    if isinstance(kind, list):
        raise UserError(
            f"the model_index.json of {name!r} names a pipeline of its own code, {kind}; code that comes with a model is"
            " never run, expected a pipeline of diffusers"
        )
    known = {found.__name__ for found in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values() if "Control" not in found.__name__}
    known -= {k for k in known if "num_frames" in inspect.signature(pipeline_class(k).__call__).parameters}
    if not isinstance(kind, str) or kind not in known:
        what = f"{name!r} is a {kind}" if kind else f"the model_index.json of {name!r} names no pipeline"
        raise UserError(f"{what}; expected a text-to-image model, like a StableDiffusionPipeline")
    return kind


def _expect_scheduler(files: GeneratorFiles, scheduler: Scheduler) -> None:
    import diffusers

    if scheduler == "model":
        return
    origin = read_object(files.folder / "model_index.json", files.name).get("scheduler") or [None, None]
    kind = getattr(diffusers, origin[1] or "", None)
    if kind is None:
        raise UserError(
            f"{files.name!r} has the scheduler {origin[1]}, which cannot be exchanged; expected scheduler model"
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
