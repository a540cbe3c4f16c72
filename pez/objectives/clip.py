"""Cosine of a prompt's text feature with features of images or texts under a CLIP."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from pez.models.text_encoder import Past, TextEncoder
from pez.models.token_features import TokenFeatures
from pez.objectives.objective import Objective
from pez.threads import in_threads, parts_of


@dataclasses.dataclass(frozen=True)
class Target:
    """Features that attract or repel a prompt.

    Args:
        features: (n, dim) float, of images or texts; need not be unit vectors.
        weights: (n,) float; 1 = attract, negative = repel. None = all 1.
        own_tokens: (n,) int64 on the CPU, the tokens of the texts if all features are of texts; see Task.

    The score of a prompt is the mean over n of weight x cosine. Since the cosine is linear in a unit feature, the features
    combine to one direction.
    """

    features: Tensor
    weights: Tensor | None = None
    own_tokens: Tensor | None = None

    def direction(self) -> Tensor:
        """(dim,) float; its dot product with a prompt's unit feature is the score.

        The mean is computed in double precision, so that it does not depend on the order of the features.
        """
        units = F.normalize(self.features, dim=-1).double()
        if self.weights is not None:
            units = units * self.weights.to(units).unsqueeze(-1)
        return units.mean(0).to(self.features.dtype)


class ClipObjective(Objective):
    """Cosine of a soft prompt's text feature with the lane's target, a direction in feature space.

    Args:
        token_features: of single tokens; None = no token is scored alone.
    """

    def __init__(self, encoder: TextEncoder, token_features: TokenFeatures | None = None) -> None:
        self.encoder, self.token_features = encoder, token_features

    def score(self, soft: Tensor, batch: Tensor) -> Tensor:
        """(lanes, tokens, width) soft prompts and (lanes, dim) directions to (lanes,) scores."""
        return _cosine(self.encoder(soft), batch)

    def score_with_gradient(self, soft: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """The same scores, and the gradient of their sum."""
        of_part = super().score_with_gradient
        found = in_threads(lambda part: of_part(soft[part], batch[part]), parts_of(soft))
        scores, gradients = zip(*found, strict=True)
        return torch.cat(scores), torch.cat(gradients)

    def score_and_keep(self, soft: Tensor, batch: Tensor) -> tuple[Tensor, Past]:
        """The same scores, and the past of these prompts."""
        features, past = self.encoder.with_past(soft)
        return _cosine(features, batch), past

    def score_changed(self, kept: Past, start: int, soft: Tensor, batch: Tensor) -> Tensor:
        """Score prompts by their tokens from position `start` on, (lanes, count, tokens - start, width)."""
        parts = parts_of(soft)
        return torch.cat(
            in_threads(lambda part: self._score_changed(kept.rows(part), start, soft[part], batch[part]), parts)
        )

    def _score_changed(self, kept: Past, start: int, soft: Tensor, batch: Tensor) -> Tensor:
        return _cosine(self.encoder.continued(kept, start, soft), batch.unsqueeze(1))

    def score_for_all(self, soft: Tensor, batch: Tensor) -> Tensor:
        """Score (count, tokens, width) prompts against (lanes, dim) directions; each prompt is encoded once."""
        return batch @ F.normalize(self.encoder(soft).to(batch.dtype), dim=-1).T

    def score_tokens(self, ids: Tensor, batch: Tensor) -> Tensor:
        """Score single tokens, (lanes, count) int64."""
        if self.token_features is None:
            return super().score_tokens(ids, batch)
        return _cosine(self.token_features(ids), batch.unsqueeze(1))


def _cosine(features: Tensor, directions: Tensor) -> Tensor:
    return (F.normalize(features.to(directions.dtype), dim=-1) * directions).sum(-1)
