"""An open_clip model as PEZ uses it: images, texts and soft prompts to features."""

import copy
import functools
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose, ToTensor
from torchvision.transforms.functional import pil_to_tensor

from pez import lists, offensive
from pez.errors import UserError
from pez.fluency import bigrams_of, expect_texts
from pez.image_inputs import ImageInputs, rgb_images
from pez.models.text_encoder import Frame, TextEncoder, frame_of, framed, text_encoder, text_tower
from pez.models.token_features import TokenFeatures
from pez.modes import own_modes
from pez.phrases import phrase_tokens
from pez.settings import PezSettings, Precision
from pez.template import EMPTY, Template
from pez.tokens import Tokens
from pez.trained import trained_tokens
from pez.vocabulary import Vocabulary
from pez.words import letter_tokens, word_tokens

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}

_FEATURES_AT_ONCE = 16  # rows per batch; short batches are padded, so that results do not depend on neighbors


class Clip:
    """A frozen CLIP on one device.

    Args:
        model: open_clip's CLIP or CustomTextCLIP.
        preprocess: PIL image to (3, height, width) float.
        tokenizer: open_clip's, for this model.
        name: its name in tables.
        recommended: (vocab,) bool, the tokens for `vocabulary="model"`; None = whole words.
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
        with own_modes():
            model = _without_inference_tensors(model)
            self.model: Any = model.to(device=device, dtype=self.full).eval().requires_grad_(False)
        self.tower = text_tower(self.model)
        self.preprocess, self.tokenizer, self.name = _in_float32(preprocess), tokenizer, name
        self.device, self.precision, self.recommended, self.compiled = device, precision, recommended, compiled
        self.context_length = int(self.tower.context_length)
        self.frame = frame_of(tokenizer, self.context_length)
        self.tokens = Tokens(tokenizer, self.tower.token_embedding.num_embeddings)
        self._encoders: dict[tuple[int, Template], TextEncoder] = {}
        self._single_tokens: TokenFeatures | None = None

    @property
    def width(self) -> int:
        """Of the token embedding."""
        return int(self.tower.token_embedding.embedding_dim)

    def image_features(self, images: ImageInputs) -> Tensor:
        """Images, in any form that `pez.image_inputs` accepts, to (n, dim) unit features in full precision."""
        return self.pixel_features(torch.stack([self.preprocess(image) for image in rgb_images(images)]))

    def pixel_features(self, pixels: Tensor) -> Tensor:
        """(n, 3, height, width) float preprocessed images to (n, dim) unit features in full precision."""
        return self._in_batches(self.model.encode_image, pixels.to(self.full))

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Texts, tokenized as open_clip does, to (n, dim) unit features in full precision."""
        return self._in_batches(self.model.encode_text, self.tokenizer(list(texts), context_length=self.context_length))

    def token_features(self, ids: Tensor, template: Template = EMPTY) -> Tensor:
        """(n, tokens) int64 prompts, without start and end, to (n, dim) unit features in full precision."""
        return self._in_batches(self.model.encode_text, framed(ids, self._frame(template), self.context_length))

    def _frame(self, template: Template) -> Frame:
        return self.frame if template == EMPTY else template.frame(self.tokens, self.frame)

    def _in_batches(self, encode: Any, rows: Tensor) -> Tensor:
        features = []
        with own_modes(gradients=False):
            for batch in rows.split(_FEATURES_AT_ONCE):
                filled = torch.cat([batch, batch[-1:].expand(_FEATURES_AT_ONCE - len(batch), *batch.shape[1:])])
                features.append(F.normalize(encode(filled.to(self.device))[: len(batch)], dim=-1))
            return torch.cat(features)

    def text_of(self, ids: Sequence[int]) -> str:
        """Decode token ids to the text a user pastes."""
        return self.tokens.text_of(ids)

    def encoder(self, tokens: int, template: Template = EMPTY) -> TextEncoder:
        """An encoder of soft prompts of `tokens` tokens inside a template, in the precision of the optimization.

        Raises:
            UserError: too many tokens for the context, or an invalid template.
        """
        if (tokens, template) not in self._encoders:
            with own_modes():
                frame = self._frame(template)
                encoder = text_encoder(self.model, frame, tokens, self.dtype, self.compiled)
            self._encoders[tokens, template] = encoder
        return self._encoders[tokens, template]

    def single_tokens(self) -> TokenFeatures:
        """Features of prompts of one token, in the optimisation's precision; they are kept."""
        if self._single_tokens is None:
            with own_modes():
                self._single_tokens = TokenFeatures(self.encoder(1), self.tower.token_embedding.weight, self.full)
        return self._single_tokens

    def with_engine(self, precision: Literal["fp32", "bf16"], compiled: bool = False) -> "Clip":
        """The same model, sharing weights, with another precision of the optimization, compiled or not."""
        other = copy.copy(self)
        other.precision, other.dtype, other.compiled = precision, DTYPES[precision], compiled
        other._encoders, other._single_tokens = {}, None
        return other

    def vocabulary(self, settings: PezSettings) -> Vocabulary:
        """The tokens that the settings allow; with the default method, only those that survive decoding and re-encoding."""
        allowed = self.allowed_tokens(settings)
        chained = settings.method == "bank"
        phrases = phrase_tokens(self.tokens, settings.bank, allowed, settings.tokens) if chained else ()
        with own_modes():
            bigrams = bigrams_of(self.tokens, expect_texts(settings)) if settings.fluency else None
            return Vocabulary(self.tower.token_embedding.weight, allowed, self.dtype, phrases, bigrams)

    def allowed_tokens(self, settings: PezSettings) -> Tensor:
        """(vocab,) bool: the tokens of the vocabulary."""
        if settings.bank:
            mask = torch.zeros_like(self.tokens.ordinary)
            mask[[i for ids in self.tokens.read(settings.bank) for i in ids]] = True
        elif settings.allowlist:
            mask = lists.allowed(self.tokens, settings.allowlist, anywhere=settings.any_token)
        elif settings.vocabulary == "model" and self.recommended is not None:
            mask = self.ordinary_tokens() & _fit(self.recommended, self.ordinary_tokens())
        elif settings.vocabulary == "words" and self.words is None:
            raise UserError(f"{self.name} has no known word tokens; use vocabulary=full")
        else:
            mask = self.ordinary_tokens() if settings.vocabulary == "full" or self.words is None else self.words
            if not settings.takes_untrained and (trained := mask & self.trained_tokens()).any():
                mask = trained
        if settings.plain:
            mask = mask & ~lists.commands(self.tokens, joining=settings.any_token)
        # Phrases must survive as a whole.
        whole = settings.any_token or settings.method == "bank"
        if not whole and (surviving := self.tokens.round_trips(mask)).any():
            mask = surviving
        if settings.blocklist:
            mask = mask & ~lists.blocked(self.tokens, offensive.expanded(settings.blocklist), mask)
        return mask

    def trained_tokens(self) -> Tensor:
        """(vocab,) bool: the tokens that the model was trained on, as far as its embeddings show; see `pez.trained`."""
        return trained_tokens(self.tokenizer, self.tower.token_embedding.weight).cpu()

    @functools.cached_property
    def words(self) -> Tensor | None:
        """(vocab,) bool: tokens that are words and survive decoding and re-encoding; None if there are none."""
        found = word_tokens(self.tokens)
        if not found.any():  # a language that the word list does not cover
            found = letter_tokens(self.tokens)
        return found if found.any() else None

    def ordinary_tokens(self) -> Tensor:
        """(vocab,) bool: all tokens except special ones (start, end, padding)."""
        return self.tokens.ordinary.clone()


def _fit(mask: Tensor, like: Tensor) -> Tensor:
    """Truncate or pad a mask to the size of another vocabulary."""
    fitted = torch.zeros_like(like)
    fitted[: min(len(mask), len(like))] = mask[: len(like)]
    return fitted


def _in_float32(preprocess: Any) -> Any:
    """A preprocessing that gives float32 pixels; torchvision's ToTensor follows torch's default dtype."""
    if not isinstance(preprocess, Compose):
        return preprocess
    return Compose([_to_float32 if isinstance(each, ToTensor) else each for each in preprocess.transforms])


def _to_float32(image: Image.Image) -> Tensor:
    pixels: Tensor = pil_to_tensor(image)  # (3, height, width) uint8
    return pixels.to(torch.float32).div(255)


def _without_inference_tensors(model: Any) -> Any:
    """Copy the weights of a model that was loaded in inference mode; gradients cannot pass through them otherwise."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is not None and value.is_inference():
                    copied = value.detach().clone()
                    held[name] = torch.nn.Parameter(copied, False) if held is module._parameters else copied
    return model
