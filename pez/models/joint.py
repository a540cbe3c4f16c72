"""Several CLIPs that read a prompt together, such as the two text encoders of SDXL.

The models have one vocabulary, so a prompt is one list of tokens for all of them. A soft prompt is the concatenation of one in
each embedding space; its nearest token maximizes the weighted sum of the cosines in the spaces (`pez/vocabulary.py`). A joint
feature is the concatenation of the models' unit features, each times the square root of the model's weight. The weights sum to
1, so joint features are unit vectors, and the dot product of two is the weighted mean of the cosines under the models. So
everything that compares features works on joint features as on those of one model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pez.errors import UserError
from pez.fluency import bigrams_of, expect_texts
from pez.image_inputs import ImageInputs, rgb_images
from pez.models.clip import Clip
from pez.models.text_encoder import Past, TextEncoder
from pez.models.token_features import TokenFeatures
from pez.modes import own_modes
from pez.settings import PezSettings
from pez.template import EMPTY, Template
from pez.vocabulary import JointVocabulary

UNLIKE = "have different vocabularies; expected models with one, such as ViT-L-14 and ViT-bigG-14"
_SENTENCE = "A photo of two dogs, 3.5 m apart; they weren't MOVING!"


class JointClip:
    """Frozen CLIPs with one vocabulary, on one device.

    Args:
        clips: two or more.
        weights: positive, one per model; default = equal.

    Raises:
        UserError: the models have different vocabularies, devices or precisions of features, or the weights are invalid.
    """

    def __init__(self, clips: Sequence[Clip], weights: Sequence[float] = ()) -> None:
        if len(clips) < 2:
            raise UserError(f"{len(clips)} models; expected two or more to join")
        _expect_alike(clips)
        self.clips = list(clips)
        self.weights = _shares(weights, len(clips))
        first = self.clips[0]
        self.device, self.full, self.tokens = first.device, first.full, first.tokens
        self.name = " + ".join(clip.name for clip in clips)
        self.context_length = min(clip.context_length for clip in clips)
        kinds = list(dict.fromkeys(repr(clip.preprocess) for clip in clips))
        self._view = [kinds.index(repr(clip.preprocess)) for clip in clips]  # models may share their pixels
        self._preprocessings = [self.clips[self._view.index(i)].preprocess for i in range(len(kinds))]
        blank = Image.new("RGB", (64, 64))
        self._shapes = [torch.as_tensor(preprocess(blank)).shape for preprocess in self._preprocessings]
        self._sizes = [clip.text_features(["a"]).shape[-1] for clip in clips]
        self._single_tokens: TokenFeatures | None = None

    def preprocess(self, image: Image.Image) -> Tensor:
        """An RGB image to (values,) float: the pixels for each model, one after another."""
        return torch.cat([preprocess(image).flatten() for preprocess in self._preprocessings])

    def image_features(self, images: ImageInputs) -> Tensor:
        """Images, in any form that `pez.image_inputs` accepts, to (n, dim) unit features in full precision."""
        return self.pixel_features(torch.stack([self.preprocess(image) for image in rgb_images(images)]))

    def pixel_features(self, pixels: Tensor) -> Tensor:
        """(n, values) float preprocessed images to (n, dim) unit features in full precision."""
        views = pixels.split([shape.numel() for shape in self._shapes], -1)
        parts = [view.unflatten(-1, shape) for view, shape in zip(views, self._shapes, strict=True)]
        return self._joined([clip.pixel_features(parts[i]) for clip, i in zip(self.clips, self._view, strict=True)])

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Texts, tokenized as open_clip does, to (n, dim) unit features in full precision."""
        return self._joined([clip.text_features(texts) for clip in self.clips])

    def token_features(self, ids: Tensor, template: Template = EMPTY) -> Tensor:
        """(n, tokens) int64 prompts, without start and end, to (n, dim) unit features in full precision."""
        return self._joined([clip.token_features(ids, template) for clip in self.clips])

    def _joined(self, features: Sequence[Tensor]) -> Tensor:
        return torch.cat([math.sqrt(share) * f for share, f in zip(self.weights, features, strict=True)], -1)

    def similarities(self, features: Tensor, directions: Tensor) -> Tensor:
        """Split dot products of joint features by model.

        Args:
            features, directions: (n, dim) float.

        Returns:
            (n, models) float; their weighted mean is the dot product.
        """
        pairs = zip(features.split(self._sizes, -1), directions.split(self._sizes, -1), self.weights, strict=True)
        return torch.stack([(a * b).sum(-1) / share for a, b, share in pairs], -1)

    def text_of(self, ids: Sequence[int]) -> str:
        """Decode token ids to the text a user pastes."""
        return self.tokens.text_of(ids)

    def encoder(self, tokens: int, template: Template = EMPTY) -> JointEncoder:
        """An encoder of soft prompts of `tokens` tokens inside a template.

        Raises:
            UserError: too many tokens for the context of a model, or an invalid template.
        """
        encoders = [clip.encoder(tokens, template) for clip in self.clips]
        return JointEncoder(encoders, [clip.width for clip in self.clips], self.weights)

    def single_tokens(self) -> TokenFeatures:
        """Features of prompts of one token, in the optimization's precision; they are kept."""
        if self._single_tokens is None:
            with own_modes():
                self._single_tokens = TokenFeatures(self.encoder(1), self._embedding, self.full)
        return self._single_tokens

    def vocabulary(self, settings: PezSettings) -> JointVocabulary:
        """The tokens that the settings allow for every model."""
        allowed = self.allowed_tokens(settings)
        with own_modes():
            widths = [clip.width for clip in self.clips]
            bigrams = bigrams_of(self.tokens, expect_texts(settings)) if settings.fluency else None
            return JointVocabulary(self._embedding, widths, self.weights, allowed, self.clips[0].dtype, bigrams)

    def allowed_tokens(self, settings: PezSettings) -> Tensor:
        """(vocab,) bool: the tokens of the vocabulary."""
        return torch.stack([clip.allowed_tokens(settings) for clip in self.clips]).all(0)

    @functools.cached_property
    def _embedding(self) -> Tensor:
        """(vocab, total width) float: the token embeddings side by side."""
        return torch.cat([clip.tower.token_embedding.weight.detach() for clip in self.clips], -1)


class JointEncoder:
    """Soft prompts of all models, side by side, to joint features.

    Args:
        encoders: one per model.
        widths: of their embeddings.
        weights: of the models, with sum 1.
    """

    def __init__(self, encoders: Sequence[TextEncoder], widths: Sequence[int], weights: Sequence[float]) -> None:
        self.encoders, self.widths = list(encoders), list(widths)
        self.scales = [math.sqrt(share) for share in weights]

    def __call__(self, soft: Tensor) -> Tensor:
        """(n, tokens, total width) float to (n, dim) unit features, differentiable."""
        return self._joined([encode(part) for encode, part in zip(self.encoders, self._parts(soft), strict=True)])

    def with_past(self, soft: Tensor) -> tuple[Tensor, Past]:
        """The same features, and what prompts with the same first tokens share; see TextEncoder."""
        found = [encode.with_past(part) for encode, part in zip(self.encoders, self._parts(soft), strict=True)]
        layers = [layer for _, past in found for layer in past.layers]
        return self._joined([feature for feature, _ in found]), Past(layers, [len(past.layers) for _, past in found])

    def continued(self, past: Past, start: int, soft: Tensor) -> Tensor:
        """Features of prompts that differ from those of the past only from position `start` on; see TextEncoder."""
        found = []
        layers = iter(past.layers)
        for encode, depth, part in zip(self.encoders, past.depths, self._parts(soft), strict=True):
            found.append(encode.continued(Past([next(layers) for _ in range(depth)]), start, part))
        return self._joined(found)

    def _parts(self, soft: Tensor) -> list[Tensor]:
        return list(soft.split(self.widths, -1))

    def _joined(self, features: Sequence[Tensor]) -> Tensor:
        return torch.cat([scale * F.normalize(f, dim=-1) for scale, f in zip(self.scales, features, strict=True)], -1)


AnyClip: TypeAlias = Clip | JointClip
"""one guide or several"""


def joined(clip: AnyClip | Sequence[Clip]) -> AnyClip:
    """One guide of a CLIP or of several."""
    if isinstance(clip, Clip | JointClip):
        return clip
    if not isinstance(clip, Sequence) or not clip or not all(isinstance(each, Clip) for each in clip):
        raise UserError(f"clip is {clip!r}; expected a CLIP from pez.load_clip, or a list of them")
    return clip[0] if len(clip) == 1 else JointClip(clip)


def models_of(clip: AnyClip) -> int:
    """How many models guide."""
    return len(clip.clips) if isinstance(clip, JointClip) else 1


def _shares(weights: Sequence[float], count: int) -> list[float]:
    """Weights that sum to 1."""
    found = [float(weight) for weight in weights] or [1.0] * count
    if len(found) != count:
        raise UserError(f"{len(found)} weights for {count} models; expected one each")
    if not all(math.isfinite(weight) and weight > 0 for weight in found):
        raise UserError(f"the weights of the models are {found}; expected numbers above 0")
    return [weight / sum(found) for weight in found]


def _expect_alike(clips: Sequence[Clip]) -> None:
    """Refuse models that cannot read one prompt together."""
    first = clips[0]
    for other in clips[1:]:
        names = f"{first.name} and {other.name}"
        same = first.tokens.texts == other.tokens.texts and first.tokens.read([_SENTENCE]) == other.tokens.read(
            [_SENTENCE]
        )
        if not same:
            raise UserError(f"{names} {UNLIKE}")
        if first.device != other.device:
            raise UserError(f"{names} are on {first.device} and {other.device}; expected one device")
        if first.precision != other.precision:
            raise UserError(f"{names} have the precisions {first.precision} and {other.precision}; expected one")
