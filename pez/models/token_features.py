"""Features of single tokens, each as a prompt of its own."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pez.models.text_encoder import TextEncoder

_ROWS = 16  # batches are whole multiples, so that a feature does not depend on what is computed beside it
_ROWS_AT_ONCE = 1024


class TokenFeatures:
    """Unit features of tokens, computed when they are first needed and kept.

    Args:
        encoder: of prompts of one token.
        embedding: (vocab, width) float, the model's token embedding.
        dtype: of the features.
    """

    def __init__(self, encoder: TextEncoder, embedding: Tensor, dtype: torch.dtype) -> None:
        self.encoder, self.embedding, self.dtype = encoder, embedding.detach(), dtype
        self.known = torch.zeros(len(embedding), dtype=torch.bool, device=embedding.device)
        self.features: Tensor | None = None  # (vocab, dim)

    @property
    def count(self) -> int:
        """How many tokens have their features."""
        return int(self.known.sum())

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        """(...) int64 token ids to (..., dim) unit features."""
        needed = ids.unique()
        for part in needed[~self.known[needed]].split(_ROWS_AT_ONCE):
            filled = torch.cat([part, part[-1:].expand(-len(part) % _ROWS)])
            found = F.normalize(self.encoder(self.embedding[filled].unsqueeze(1)).to(self.dtype), dim=-1)
            if self.features is None:
                self.features = found.new_zeros(len(self.embedding), found.shape[-1])
            self.features[part] = found[: len(part)]
            self.known[part] = True
        assert self.features is not None, "one token at least was asked for"
        return self.features[ids]
