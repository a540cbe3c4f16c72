"""Load a CLIP by any name: a demo model, an open_clip name, a folder or a hub repository.

All model names are resolved here. Models get the activation and the preprocessing that they were trained with.
"""

import dataclasses
import hashlib
import json
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg
from torch import Tensor

from pez.demo import CLIPS
from pez.demo.scenes import caption_words
from pez.errors import UserError
from pez.models.clip import DTYPES, Clip
from pez.models.joint import UNLIKE, AnyClip, JointClip
from pez.models.names import guides_of
from pez.models.quiet import quiet_logging
from pez.models.text_encoder import Frame, expect_room, frame_of
from pez.modes import own_modes
from pez.settings import ModelSettings, Precision
from pez.template import EMPTY, Template
from pez.tokens import Tokens

_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


def load_clip(
    name: str = "ViT-H-14",
    pretrained: str | None = "laion2b_s32b_b79k",
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
    compiled: bool = False,
) -> Clip:
    """Load an open_clip model.

    Args:
        name: an open_clip name ("ViT-H-14"), "hf-hub:ORG/REPO", "local-dir:FOLDER" with open_clip_config.json, "demo" or
            "demo-judge".
        pretrained: a tag of that name; TAG=FILE for a file with a tag's weights; any checkpoint file; "none" = random
            weights, with a warning. Ignored for names that include their weights, that is, all but open_clip names.
        device: where to put the model.
        precision: of the optimization; images and texts are always encoded in float32 (float64 with "fp64").
        compiled: compile the text tower's block; worthwhile for long runs on a GPU.

    A checkpoint file gets the activation and the preprocessing of the named tag, or else of the tag found by its hash or by its
    folder in the hub's cache, or else of an open_clip_config.json in the same folder. Otherwise one warning says what was
    assumed.

    No code that comes with a model is ever run: checkpoints are safetensors or are read as plain tensors.

    Raises:
        UserError: no such model or checkpoint, or the weights do not fit the model or are not finite.
    """
    if precision not in DTYPES:
        raise UserError(f"precision is {precision!r}; expected one of {', '.join(DTYPES)}")
    with own_modes():
        model, preprocess, tokenizer, label = load_open_clip(_without_alias(name), pretrained)
        recommended = _words_of_scenes(tokenizer, model) if name in CLIPS else None
        label = name if name in CLIPS else label
        return Clip(model, preprocess, tokenizer, label, torch.device(device), precision, recommended, compiled)


def load_model(settings: ModelSettings, device: str | torch.device) -> AnyClip:
    """Load the CLIP that settings describe, or several; see load_clip.

    Raises:
        UserError: one does not fit in memory beside the others, or they have different vocabularies.
    """
    chosen = settings.on(str(device))
    assert chosen.precision is not None, "chosen for the device"
    clips: list[Clip] = []
    for name, pretrained in guides_of(chosen):
        try:
            clips.append(load_clip(name, pretrained, device, chosen.precision, chosen.compiled))
        except (torch.OutOfMemoryError, MemoryError) as error:
            beside = f" beside {', '.join(clip.name for clip in clips)}" if clips else ""
            raise UserError(f"{name} does not fit in the memory of {device}{beside}; use a larger device") from error
    return clips[0] if len(clips) == 1 else JointClip(clips, chosen.model_weights)


def check_models(settings: ModelSettings, tokens: int = 1, template: Template = EMPTY) -> None:
    """Check every model of a job; see check_model.

    Raises:
        UserError: also if they have different vocabularies.
    """
    vocabularies: dict[tuple[object, ...], str] = {}
    for name, pretrained in guides_of(settings):
        check_model(name, pretrained, tokens, template)
        if not name.startswith("hf-hub:"):
            config = _config_of(_without_alias(name)).get("text_cfg", {})
            vocabularies[config.get("vocab_size", 49408), config.get("hf_tokenizer_name")] = name
    if len(vocabularies) > 1:
        one, other, *_ = vocabularies.values()
        raise UserError(f"{one} and {other} {UNLIKE}")


def check_model(name: str, pretrained: str | None, tokens: int = 1, template: Template = EMPTY) -> None:
    """Check a choice of model without loading its weights.

    Args:
        tokens, template: of the prompts; a template is checked if the tokenizer is on this machine.

    Raises:
        UserError: no such model or checkpoint, or prompts too long for its context.
    """
    schema, _, rest = _without_alias(name).partition(":")
    _expect_rest(name)
    if schema == "hf-hub":
        return  # the hub answers when the model is loaded
    if schema == "local-dir":
        _expect_folder(Path(rest))
    else:
        _expect_known(name, pretrained)
    config = _config_of(_without_alias(name)).get("text_cfg", {})
    length, around = config.get("context_length", 77), Frame([0], [0])  # the tokens of start and end
    if template != EMPTY and not config.get("hf_tokenizer_name"):
        tokenizer = _load_tokenizer(_without_alias(name))
        around = template.frame(Tokens(tokenizer, config.get("vocab_size", 49408)), frame_of(tokenizer, length))
    expect_room(tokens, around, length, name)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a model's parts come from."""

    name: str
    """the open_clip name, which includes the activation"""
    weights: str | None = None
    """a tag or a file; None = random, or included in the model"""
    label: str = ""
    """its name in tables: with open_clip alone, name and tag load the same model"""
    preprocessing: dict[str, Any] = dataclasses.field(default_factory=dict)
    """preprocessing of the weights, if open_clip does not know it"""
    assumed: str | None = None
    """a warning that says what was assumed"""


def load_open_clip(name: str, pretrained: str | None) -> tuple[Any, Any, Any, str]:
    """Load a model; see pez.load_clip.

    Returns:
        model, preprocessing, tokenizer and its name in tables.
    """
    source = find(name, pretrained)
    name, has_own = source.name, ":" in source.name
    if not source.weights and not has_own:
        warnings.warn(f"{name} has RANDOM weights (pretrained=none): its prompts mean nothing", stacklevel=3)
    if source.assumed:
        warnings.warn(source.assumed, stacklevel=3)
    tokenizer = _load_tokenizer(name)
    try:
        with quiet_logging():
            model, _, preprocess = open_clip.create_model_and_transforms(
                name,
                pretrained=source.weights,
                weights_only=True,  # a pickle with code is an error
                require_pretrained=bool(source.weights or has_own),
                **{f"image_{key}": value for key, value in source.preprocessing.items()},
            )
    except Exception as error:  # torch, safetensors, huggingface_hub and open_clip raise many kinds
        weights = source.weights or "of its own"
        raise UserError(f"cannot load {name!r} with weights {weights}: {_reason(error)}") from error
    _expect_finite(name, model)
    return model, preprocess, tokenizer, source.label


def find(name: str, pretrained: str | None) -> Source:
    """Resolve a name and a choice of weights.

    Raises:
        UserError: no such model or checkpoint.
    """
    schema, _, rest = name.partition(":")
    _expect_rest(name)
    if schema in ("local-dir", "hf-hub"):
        if schema == "local-dir":
            _expect_folder(Path(rest))
        return Source(name, label=name)
    _expect_known(name, pretrained)
    if not pretrained or pretrained == "none":
        return Source(name, label=f"{name}/none")
    tag, file = _tag_and_file(name, pretrained)
    if file is None:
        named = _name_with_activation(name, open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu"))
        return Source(named, pretrained, f"{named}/{pretrained}")
    tag = tag or _tag_of(name, file)
    if tag is not None:
        known = open_clip.get_pretrained_cfg(name, tag)
        named = _name_with_activation(name, known.get("quick_gelu"))
        return Source(named, str(file), f"{named}/{tag}", _preprocessing(known))
    if (beside := file.parent / "open_clip_config.json").is_file():
        config = _read_config(beside)
        named = _name_with_activation(name, config.get("model_cfg", {}).get("quick_gelu"))
        return Source(named, str(file), f"{named}/{file}", _preprocessing(config.get("preprocess_cfg", {})))
    return _assumed(name, file)


def _assumed(name: str, file: Path) -> Source:
    """Weights of unknown origin: use the settings of the model's known weights if they agree, else open_clip's defaults."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    known = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    agreed = bool(known) and all(_trained_as(one) == _trained_as(known[0]) for one in known)
    preprocessing = _preprocessing(known[0] if agreed else dataclasses.asdict(PreprocessCfg()))
    named = _name_with_activation(name, agreed and known[0].get("quick_gelu"))
    activation = "QuickGELU" if (open_clip.get_model_config(named) or {}).get("quick_gelu") else "GELU"
    values = ", ".join(f"{key} {_short(value)}" for key, value in preprocessing.items())
    advice = f"; if they belong to a known tag, use TAG={file} with one of {', '.join(tags)}" if tags else ""
    line = f"the weights in {file} are unknown: assuming {activation}, {values}{advice}"
    return Source(named, str(file), f"{named}/{file}", preprocessing, line)


def _trained_as(known: dict[str, Any]) -> tuple[object, ...]:
    return (bool(known.get("quick_gelu")), *(str(known.get(key)) for key in _PREPROCESSING))


def _short(value: Any) -> str:
    return str(value) if isinstance(value, str) else "/".join(f"{part:.3f}" for part in value)


def _preprocessing(known: dict[str, Any]) -> dict[str, Any]:
    return {key: known[key] for key in _PREPROCESSING if known.get(key) is not None}


def _name_with_activation(name: str, quick_gelu: Any) -> str:
    """The open_clip name of the model with the activation that its weights were trained with."""
    config = open_clip.get_model_config(name) or {}
    named = f"{name}-quickgelu"
    return named if quick_gelu and not config.get("quick_gelu") and named in open_clip.list_models() else name


def _without_alias(name: str) -> str:
    """Resolve the demo names, which stand for folders."""
    return f"local-dir:{CLIPS[name]}" if name in CLIPS else name


def _words_of_scenes(tokenizer: Any, model: Any) -> Tensor:
    """(vocab,) bool: the words of the demo's captions; each is one token."""
    words = torch.zeros(model.token_embedding.num_embeddings, dtype=torch.bool)
    words[[tokenizer.encode(word)[0] for word in caption_words()]] = True
    return words


def _tag_and_file(name: str, pretrained: str) -> tuple[str | None, Path | None]:
    """Parse a tag, a file or TAG=FILE."""
    if open_clip.get_pretrained_cfg(name, pretrained):
        return pretrained, None
    if os.path.isfile(pretrained):
        return None, Path(pretrained)
    tag, _, file = pretrained.partition("=")
    return tag, Path(file).expanduser()


def _tag_of(name: str, file: Path) -> str | None:
    """The tag whose weights a file holds, found by its folder in the hub's cache or by its hash."""
    known: dict[str, dict[str, str]] = {
        tag: open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)
    }
    for tag, config in known.items():
        repository = config.get("hf_hub", "").rsplit("/", 1)[0]
        if repository and f"models--{repository.replace('/', '--')}" in file.absolute().parts:
            return tag
    starts = {start: tag for tag, config in known.items() if (start := _hash_in(config.get("url", "")))}
    if not starts:
        return None
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return next((tag for start, tag in starts.items() if digest.startswith(start)), None)


def _hash_in(url: str) -> str:
    """The start of a file's SHA-256, which two of open_clip's sources put in their URLs."""
    if "openaipublic" in url:
        return url.split("/")[-2]
    return Path(url).stem.split("-")[-1] if "mlfoundations" in url else ""


def _load_tokenizer(name: str) -> Any:
    try:
        with quiet_logging():
            config = _config_of(name)
            _expect_no_code(config)
            wanted = config.get("text_cfg", {}).get("hf_tokenizer_name")
    except Exception as error:
        raise UserError(f"cannot load {name!r}: {_reason(error)}") from error
    try:
        with quiet_logging():
            return open_clip.get_tokenizer(name)
    except Exception as error:
        own = name.startswith("local-dir:")
        which = f"tokenizer {wanted!r} of {name!r}" if wanted and not own else f"tokenizer of {name!r}"
        advice = "expected its files in that folder" if own else "expected it in the hub's cache or a reachable hub"
        if isinstance(error, ImportError):
            advice = "install it with pip install transformers sentencepiece"
        raise UserError(f"cannot load the {which}: {_one_line(error)}; {advice}") from error


def _config_of(name: str) -> dict[str, Any]:
    schema, _, rest = name.partition(":")
    if schema == "local-dir":
        config = _read_config(Path(rest) / "open_clip_config.json")
        model_config: dict[str, Any] = config.get("model_cfg", config)
        return model_config
    return open_clip.get_model_config(name) or {}


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); expected JSON, copy it again") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} holds a {type(config).__name__}; expected the configuration of a model")
    return config


def _expect_no_code(config: Any) -> None:
    """Refuse a configuration that lets transformers run code from the model's folder."""
    if isinstance(config, dict):
        if config.get("trust_remote_code"):
            raise UserError("its configuration sets trust_remote_code; code that comes with a model is never run")
        for value in config.values():
            _expect_no_code(value)


def _expect_finite(name: str, model: Any) -> None:
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            count = int((~value.isfinite()).sum())
            raise UserError(
                f"the weights of {name} are damaged: {count} of {value.numel()} numbers in {key} are not finite;"
                " download or convert them again"
            )


def _expect_rest(name: str) -> None:
    if name in ("hf-hub:", "local-dir:"):
        raise UserError(f"{name!r} names no model; expected hf-hub:ORG/REPO or local-dir:FOLDER")


def _expect_folder(folder: Path) -> None:
    for file in (folder, folder / "open_clip_config.json"):
        if not file.exists():
            raise UserError(f"there is no {file}; expected an open_clip folder with open_clip_config.json and weights")
    if not any(file.suffix in (".safetensors", ".bin", ".pth") for file in folder.iterdir()):
        raise UserError(f"no weights in {folder}; expected a .safetensors, .bin or .pth file")


def _expect_known(name: str, pretrained: str | None) -> None:
    if name not in open_clip.list_models():
        close = [m for m in open_clip.list_models() if m.lower().startswith(name.lower()[:5])]
        raise UserError(
            f"no model {name!r}; expected demo, hf-hub:ORG/REPO, local-dir:FOLDER or an open_clip name"
            + (f" like {', '.join(close[:6])}" if close else "")
        )
    if not pretrained or pretrained == "none":
        return
    tags = open_clip.list_pretrained_tags_by_model(name)
    if open_clip.get_pretrained_cfg(name, pretrained) or os.path.isfile(pretrained):
        return
    tag, equals, file = pretrained.partition("=")
    if equals and open_clip.get_pretrained_cfg(name, tag):
        if not Path(file).expanduser().is_file():
            raise UserError(f"no file {file!r} with the weights {tag} of {name}; expected a checkpoint file")
        return
    expected = "a checkpoint file, none, or one of " + ", ".join(tags) if tags else "a checkpoint file or none"
    raise UserError(f"no weights {pretrained!r} for {name}; expected {expected}{', or TAG=FILE' if tags else ''}")


def _reason(error: BaseException) -> str:
    expected = "expected safetensors, or a file that maps names to tensors"
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):  # torch suggests running the code
        return f"the checkpoint is damaged, or holds code or objects other than tensors; {expected}"
    if isinstance(error, (EOFError, KeyError, StopIteration, AttributeError)):
        return f"the checkpoint is damaged or holds something else ({type(error).__name__}); {expected}"
    return _one_line(error)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:4]) or type(error).__name__
    return text if len(text) < 500 else text[:500] + "..."
