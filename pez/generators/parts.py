"""Check the parts of a model in diffusers format: each exists, has a known class and matches its configuration."""

import dataclasses
import inspect
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from pez.errors import UserError
from pez.models.safetensors_head import damage, shapes_of

Shapes = Mapping[str, tuple[int, ...]]
"""tensor shapes, by name"""

_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>[\w-]+))?\.(?:safetensors|bin)"
    r"(?P<index>\.index(?:\.(?P<of_index>[\w-]+))?\.json)?"
)
_SHARD = re.compile(r"-\d+-of-\d+$")
_DISPENSABLE = {"text_encoder_3", "tokenizer_3"}  # the T5 of SD 3, often omitted because of its size


@dataclasses.dataclass(frozen=True)
class GeneratorFiles:
    """The files of a text-to-image model."""

    name: str
    """as the user gave it"""
    kind: str
    """its pipeline class in diffusers"""
    folder: Path
    """holds the configurations, and usually the weights"""
    names: frozenset[str]
    """of all files, relative to the folder"""
    variant: str | None = None
    """of the weights, such as fp16"""
    checkpoint: Path | None = None
    """a single file with all weights"""
    on_hub: bool = False
    """the weights are on the hub, not in the folder"""
    without: tuple[str, ...] = ()
    """optional parts that are missing although diffusers requires them as arguments"""


def looked_through(files: GeneratorFiles, variant: str | None) -> GeneratorFiles:
    """Load and check everything except the weights.

    Returns:
        the files, with the variant to load.
    """
    from diffusers import ModelMixin
    from transformers import PreTrainedModel

    index = read_object(files.folder / "model_index.json", files.name)
    models: dict[str, Shapes] = {}
    for part, origin in index.items():
        if part.startswith("_") or not isinstance(origin, list):
            continue
        kind = _class_of(part, origin, files.name)
        if kind is None or (files.checkpoint and part == "safety_checker"):  # single files have none
            continue
        if not any(n.startswith(f"{part}/") for n in files.names):
            raise UserError(f"no {part} in {files.folder}, but its model_index.json lists one: copy the whole folder")
        try:
            if issubclass(kind, (ModelMixin, PreTrainedModel)):
                models[part] = _shapes_expected(kind, files.folder / part)
            else:
                kind.from_pretrained(files.folder, subfolder=part, local_files_only=True)
        except Exception as error:  # each library raises its own kinds
            raise UserError(
                f"cannot load the {part} of {files.name!r}, a {kind.__name__}: {one_line(error)}"
            ) from error
    files = dataclasses.replace(files, without=_expect_parts(files, index))
    if files.checkpoint:
        return files
    files = dataclasses.replace(files, variant=_variant(files, models, variant))
    for part, expected in models.items():
        _expect_weights(files, part, expected)
    return files


def _class_of(part: str, origin: list[Any], name: str) -> Any:
    """The class of a part; None if the model has no such part."""
    import diffusers
    import transformers
    from diffusers.pipelines import pipeline_loading_utils

    if origin == [None, None]:
        return None
    message = f"the model_index.json of {name!r} says {part} is {origin}"
    if len(origin) != 2 or not all(isinstance(word, str) for word in origin):
        raise UserError(f"{message}; expected a library and a class")
    library, kind = origin
    own = getattr(diffusers.pipelines, library, None) if library.isidentifier() else None
    module = {"diffusers": diffusers, "transformers": transformers}.get(library, own)
    if module is None:
        raise UserError(f"{message}; expected diffusers or transformers: code from elsewhere is never run")
    renamed = getattr(pipeline_loading_utils, "_maybe_remap_transformers_class", lambda _: None)(kind)
    found = getattr(module, renamed or kind, None) if library == "transformers" else getattr(module, kind, None)
    if not isinstance(found, type):
        raise UserError(f"{message}, and this version of {library} has no such class; try another version of it")
    return found


def _shapes_expected(kind: Any, folder: Path) -> Shapes:
    """Build a model from its configuration on the meta device, if its class supports that.

    Returns:
        the shapes of its weights by name; empty if they are unknown before loading.
    """
    import diffusers

    if not (folder / "config.json").is_file():
        raise UserError(f"no config.json in {folder}")
    if not issubclass(kind, diffusers.ModelMixin):
        kind.config_class.from_pretrained(folder, local_files_only=True)
        return {}
    config = kind.load_config(folder)
    try:
        with torch.device("meta"):
            model = kind.from_config(config)
    except (NotImplementedError, RuntimeError):
        return {}  # it needs actual values
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _expect_parts(files: GeneratorFiles, index: dict[str, Any]) -> tuple[str, ...]:
    """Require that the index lists all parts of its pipeline.

    Returns:
        the missing parts that are optional.
    """
    kind = pipeline_class(files.kind)
    needed = {
        p.name
        for p in inspect.signature(kind.__init__).parameters.values()
        if p.default is p.empty and p.name != "self"
    }
    left_out = {part for part in needed - set(kind._optional_components) if index.get(part) in (None, [None, None])}
    for part in sorted(left_out - _DISPENSABLE):
        raise UserError(f"{files.name!r} is a {files.kind} without a {part}; expected a complete pipeline")
    for part in sorted(needed - left_out):
        if not isinstance(index.get(part, []), list):
            raise UserError(
                f"the model_index.json of {files.name!r} says {part} is {index[part]!r}; expected a library and a class"
            )
    return tuple(sorted(left_out))


def _variant(files: GeneratorFiles, models: Iterable[str], wanted: str | None) -> str | None:
    """The variant to load: by default the plain weights, or the available variant if there are none."""
    there = {part: _variants(files, part) for part in models}
    for part, variants in there.items():
        if not variants:
            raise UserError(
                f"no weights in {part}/ of {files.name!r}; expected a diffusion_pytorch_model.safetensors or a "
                f"model.safetensors there{'' if files.on_hub else ': copy or download the whole model'}"
            )
    every = sorted({v for variants in there.values() for v in variants if v})
    lacking = [variants for variants in there.values() if None not in variants]
    if wanted is not None:
        if wanted not in every:
            raise UserError(
                f"{files.name!r} has no variant {wanted!r} of its weights; expected {' or '.join(every) or 'no variant'}"
            )
        for part, variants in there.items():
            if not variants & {wanted, None}:
                raise UserError(f"{part}/ of {files.name!r} has neither the variant {wanted!r} nor plain weights")
        return wanted
    if not lacking:
        return None
    common = set.intersection(*lacking)
    if len(common) == 1 or "fp16" in common:
        return "fp16" if "fp16" in common else str(common.pop())
    raise UserError(f"{files.name!r} has only variants of its weights; choose one: {' or '.join(every)}")


def _variants(files: GeneratorFiles, part: str) -> set[str | None]:
    found = set()
    for name in files.names:
        folder, _, base = name.rpartition("/")
        if folder == part and (match := _WEIGHTS.fullmatch(base)):
            variant = match["of_index"] or match["variant"]
            if not _SHARD.search(variant or ""):
                found.add(variant)
    return found


def _expect_weights(files: GeneratorFiles, part: str, expected: Shapes) -> None:
    """Require that a part's weights exist, are complete and have the shapes of its configuration."""
    variants = _variants(files, part)
    variant = files.variant if files.variant in variants else None
    for name in sorted(files.names):
        folder, _, base = name.rpartition("/")
        match = _WEIGHTS.fullmatch(base) if folder == part else None
        if match is None or (match["of_index"] or match["variant"]) != variant:
            continue
        shards = [base]
        path = files.folder / name
        if match["index"]:
            if not path.is_file():
                continue
            shards = sorted(set(read_object(path, files.name).get("weight_map", {}).values()))
        for shard in shards:
            if f"{part}/{shard}" not in files.names:
                raise UserError(f"no {part}/{shard} in {files.name!r}, but its index lists it: copy the whole model")
            path = files.folder / part / shard
            if problem := damage(path):
                raise UserError(f"{part}/{shard} of {files.name!r} {problem}; copy or download it again")
            _expect_shapes(path, f"{part}/{shard} of {files.name!r}", expected)


def _expect_shapes(file: Path, message: str, expected: Shapes) -> None:
    """Compare the tensors of a weights file with the model's; names may differ between versions."""
    if not expected or file.suffix != ".safetensors" or not file.is_file():
        return
    found = shapes_of(file)
    if not found.keys() & expected.keys():
        raise UserError(f"{message} has {min(found, default='nothing')}; expected weights such as {min(expected)}")
    for name in sorted(found.keys() & expected.keys()):
        if found[name] != expected[name]:
            raise UserError(f"{message} has {name} of shape {found[name]}; its config.json expects {expected[name]}")


def pipeline_class(kind: str) -> Any:
    import diffusers

    return getattr(diffusers, kind)


def read_object(file: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the {file.name} of {name!r}: {one_line(error)}") from error
    if not isinstance(config, dict):
        raise UserError(f"the {file.name} of {name!r} is a {type(config).__name__}; expected an object")
    return config


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
