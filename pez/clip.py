"""An open_clip model as PEZ needs it: images and texts to features, and soft prompts to scores."""

import contextlib
import copy
import functools
import logging
import os
import pickle
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pez.settings import PezSettings, Precision
from pez.text_encoder import TextEncoder, frame_of, framed, text_encoder, text_tower
from pez.vocabulary import Vocabulary, blocked, lasting, listed, of_letters

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}

_FEATURES_AT_ONCE = 16  # rows of every image or text batch, short ones are padded: results do not depend on neighbours


def load_clip(
    name: str = "ViT-H-14",
    pretrained: str | None = "laion2b_s32b_b79k",
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
    compiled: bool = False,
) -> "Clip":
    """Load an open_clip model.

    Args:
        name: an open_clip name ("ViT-H-14"), "hf-hub:ORG/REPO", or "local-dir:FOLDER" with open_clip_config.json.
        pretrained: a tag of that name or a checkpoint file; "none" = random weights, with a warning. The hf-hub: and
            local-dir: names carry their weights and ignore it.
        device: where the model lives.
        precision: of the optimisation; images and texts are always encoded in float32 (float64 with "fp64").
        compiled: compile the text tower's block; for long runs on a GPU.

    Nothing that comes with a model is run as code: checkpoints are safetensors or are read as plain tensors.

    Raises:
        ValueError: no such model, no such checkpoint, weights that do not fit the model or are not finite; one line.
    """
    if precision not in DTYPES:
        raise ValueError(f"precision is {precision!r}; expected one of {', '.join(DTYPES)}")
    model, preprocess, tokenizer = _load_open_clip(name, pretrained)
    label = name if ":" in name or name == "demo" else f"{name}/{pretrained}"
    return Clip(model, preprocess, tokenizer, label, torch.device(device), precision, compiled=compiled)


class Clip:
    """A frozen CLIP on one device.

    Args:
        model: open_clip's CLIP or CustomTextCLIP.
        preprocess: PIL image to (3, height, width) float.
        tokenizer: open_clip's, for this model.
        name: what tables call it.
        recommended: (vocab,) bool tokens for `vocabulary="model"`; None = whole words.
    """

    def __init__(
        self,
        model: Any,
        preprocess: Any,
        tokenizer: Any,
        name: str,
        device: torch.device,
        precision: Precision = "fp32",
        recommended: Tensor | None = None,
        compiled: bool = False,
    ) -> None:
        self.dtype = DTYPES[precision]
        self.full = torch.float64 if precision == "fp64" else torch.float32
        self.model: Any = model.to(device=device, dtype=self.full).eval().requires_grad_(False)
        self.tower = text_tower(self.model)
        self.preprocess, self.tokenizer, self.name = preprocess, tokenizer, name
        self.device, self.precision, self.recommended, self.compiled = device, precision, recommended, compiled
        self.context_length = int(self.tower.context_length)
        self.frame = frame_of(tokenizer, self.context_length)
        self._encoders: dict[int, TextEncoder] = {}

    @torch.no_grad()
    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Images, RGB, to (n, dim) unit features in full precision."""
        return self.pixel_features(torch.stack([self.preprocess(image) for image in images]))

    @torch.no_grad()
    def pixel_features(self, pixels: Tensor) -> Tensor:
        """(n, 3, height, width) float preprocessed images to (n, dim) unit features in full precision."""
        return self._in_batches(self.model.encode_image, pixels.to(self.full))

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Texts, tokenised as open_clip does, to (n, dim) unit features in full precision."""
        return self._in_batches(self.model.encode_text, self.tokenizer(list(texts), context_length=self.context_length))

    @torch.no_grad()
    def token_features(self, ids: Tensor) -> Tensor:
        """(n, tokens) int64 prompts, without start and end, to (n, dim) unit features in full precision."""
        return self._in_batches(self.model.encode_text, framed(ids, self.frame, self.context_length))

    def _in_batches(self, encode: Any, rows: Tensor) -> Tensor:
        features = []
        for batch in rows.split(_FEATURES_AT_ONCE):
            filled = torch.cat([batch, batch[-1:].expand(_FEATURES_AT_ONCE - len(batch), *batch.shape[1:])])
            features.append(F.normalize(encode(filled.to(self.device))[: len(batch)], dim=-1))
        return torch.cat(features)

    def text_of(self, ids: Sequence[int]) -> str:
        """Token ids to the text a user pastes."""
        decode = getattr(self.tokenizer, "decode", None) or self.tokenizer.tokenizer.decode
        return decode(list(ids)).strip()

    def encoder(self, tokens: int) -> TextEncoder:
        """Soft prompts of so many tokens to features, in the precision of the optimisation."""
        if tokens not in self._encoders:
            self._encoders[tokens] = text_encoder(self.model, self.tokenizer, tokens, self.dtype, self.compiled)
        return self._encoders[tokens]

    def with_engine(self, precision: Literal["fp32", "bf16"], compiled: bool = False) -> "Clip":
        """The same model, weights shared, optimised in another precision, compiled or not."""
        other = copy.copy(self)
        other.precision, other.dtype, other.compiled, other._encoders = precision, DTYPES[precision], compiled, {}
        return other

    def vocabulary(self, settings: PezSettings) -> Vocabulary:
        """The tokens that the settings allow: unless they say exact, those of them that last as text."""
        embedding = self.tower.token_embedding.weight
        mask = self.ordinary_tokens()
        if settings.vocabulary == "model" and self.recommended is not None and not settings.allowlist:
            mask &= _fit(self.recommended, mask)
        elif settings.vocabulary != "full" and self.words is not None:
            mask &= self.words
        elif settings.vocabulary == "words":
            raise ValueError(f"{self.name} has no word tokens that are known; use vocabulary=full")
        if settings.allowlist:
            mask &= _fit(listed(self.tokenizer, settings.allowlist), mask)
        if settings.blocklist:
            mask &= ~_fit(blocked(self.tokenizer, settings.blocklist), mask)
        if not settings.exact and self.lasting is not None and (mask & self.lasting).any():
            mask &= self.lasting
        return Vocabulary(embedding, mask, self.dtype)

    @functools.cached_property
    def lasting(self) -> Tensor | None:
        """(vocab,) bool: tokens that stay themselves in a prompt's text; None where the tokenizer does not tell."""
        try:
            return _fit(lasting(self.tokenizer), self.ordinary_tokens())
        except ValueError:
            return None

    @functools.cached_property
    def words(self) -> Tensor | None:
        """(vocab,) bool: those of them that are of letters alone."""
        return None if self.lasting is None else self.lasting & _fit(of_letters(self.tokenizer), self.lasting)

    def ordinary_tokens(self) -> Tensor:
        """(vocab,) bool: every token but the special ones (start, end, padding of real use)."""
        mask = torch.ones(self.tower.token_embedding.num_embeddings, dtype=torch.bool)
        inner = getattr(self.tokenizer, "tokenizer", self.tokenizer)
        mask[[i for i in inner.all_special_ids if i < len(mask)]] = False
        mask[getattr(inner, "vocab_size", len(mask)) :] = False
        return mask


class ClipObjective:
    """Cosine of a soft prompt's text feature with the lane's target, a direction of features."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder

    def score(self, soft: Tensor, target: Tensor) -> Tensor:
        """(lanes, tokens, width) soft prompts and (lanes, dim) directions to (lanes,) scores."""
        features = F.normalize(self.encoder(soft).to(target.dtype), dim=-1)
        return (features * target).sum(-1)


def _fit(mask: Tensor, like: Tensor) -> Tensor:
    """A tokenizer's mask over a model's vocabulary, which may be larger."""
    fitted = torch.zeros_like(like)
    fitted[: min(len(mask), len(like))] = mask[: len(like)]
    return fitted


def _load_open_clip(name: str, pretrained: str | None) -> tuple[Any, Any, Any]:
    schema, _, rest = name.partition(":")
    weights: str | None = None
    options: dict[str, Any] = {}
    if schema == "local-dir":
        _expect_folder(Path(rest))
    elif schema != "hf-hub":
        _expect_known(name, pretrained)
        if pretrained and pretrained != "none":
            weights = pretrained
            known = open_clip.get_pretrained_cfg(name, pretrained)
            # OpenAI's weights were trained with another activation than the plain configuration names.
            options["force_quick_gelu"] = bool(known and known.get("quick_gelu"))
        else:
            warnings.warn(f"{name} has RANDOM weights (pretrained=none): its prompts mean nothing", stacklevel=4)
    try:
        with _quiet_logging():
            _expect_no_code(open_clip.get_model_config(name))
            model, _, preprocess = open_clip.create_model_and_transforms(
                name,
                pretrained=weights,
                weights_only=True,  # a pickle with code is an error
                require_pretrained=bool(weights or schema in ("hf-hub", "local-dir")),
                **options,
            )
            tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # each of torch, safetensors, huggingface_hub and open_clip has its own errors
        raise ValueError(f"cannot load {name!r} with weights {weights or 'of its own'}: {_reason(error)}") from error
    _expect_finite(name, model)
    return model, preprocess, tokenizer


def _expect_no_code(config: Any) -> None:
    """A model's configuration may ask transformers to run the code that lies beside it."""
    if isinstance(config, dict):
        if config.get("trust_remote_code"):
            raise ValueError("its configuration asks for trust_remote_code; code that comes with a model is never run")
        for value in config.values():
            _expect_no_code(value)


def _expect_finite(name: str, model: Any) -> None:
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            count = int((~value.isfinite()).sum())
            raise ValueError(
                f"the weights of {name} are damaged: {count} of {value.numel()} numbers in {key} are not finite;"
                " expected none, download or convert them again"
            )


def check_model(name: str, pretrained: str | None, tokens: int) -> None:
    """Find what is wrong with a choice of model without loading its weights.

    Raises:
        ValueError: no such model or checkpoint, or prompts too long for its context; one line.
    """
    schema, _, rest = name.partition(":")
    if name == "demo" or schema == "hf-hub":
        return  # the demo is always there; the hub answers when the model is loaded
    if schema == "local-dir":
        _expect_folder(Path(rest))
    else:
        _expect_known(name, pretrained)
    config = open_clip.get_model_config(name) or {}
    length = config.get("text_cfg", {}).get("context_length", 77)
    if tokens > length - 2:
        raise ValueError(f"{tokens} tokens do not fit {name}; its context of {length} has room for 1 to {length - 2}")


def _expect_folder(folder: Path) -> None:
    for file in (folder, folder / "open_clip_config.json"):
        if not file.exists():
            raise ValueError(f"no {file}; expected an open_clip folder with open_clip_config.json and weights")
    if not any(file.suffix in (".safetensors", ".bin", ".pth") for file in folder.iterdir()):
        raise ValueError(f"no weights in {folder}; expected a .safetensors, .bin or .pth file")


def _expect_known(name: str, pretrained: str | None) -> None:
    if name not in open_clip.list_models():
        close = [m for m in open_clip.list_models() if m.lower().startswith(name.lower()[:5])]
        raise ValueError(
            f"no model {name!r}; expected demo, hf-hub:ORG/REPO, local-dir:FOLDER or an open_clip name"
            + (f" like {', '.join(close[:6])}" if close else "")
        )
    if not pretrained or pretrained == "none":
        return
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags and not os.path.isfile(pretrained):
        raise ValueError(
            f"no weights {pretrained!r} for {name}; expected a checkpoint file, none, or one of {', '.join(tags)}"
        )


def _reason(error: BaseException) -> str:
    expected = "expected safetensors, or a file of tensors by name"
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):  # torch advises to run the code
        return f"the checkpoint is damaged, or holds code or other objects than tensors; {expected}"
    if isinstance(error, (EOFError, KeyError, StopIteration, AttributeError)):
        return f"the checkpoint is damaged or holds something else ({type(error).__name__}); {expected}"
    return _one_line(error)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:4]) or type(error).__name__
    return text if len(text) < 500 else text[:500] + "..."


@contextlib.contextmanager
def _quiet_logging() -> Iterator[None]:
    """open_clip logs what we report ourselves."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
