"""The tokens that prompts are made of: which are allowed, and which is nearest to a soft token."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pez.errors import UserError
from pez.fluency import Bigrams

_SIMILARITIES_AT_ONCE = 2**25  # (soft tokens x vocabulary) products in memory at a time
_BYTES_ON_A_CPU = 2**25  # of them: the system maps and clears larger blocks anew each time
_BLOCKS = 64  # of a row, for its maximum


class Vocabulary:
    """A frozen token embedding and its allowed rows.

    Args:
        embedding: (vocab, width) float, the model's token embedding.
        allowed: (vocab,) bool; tokens marked False are never chosen.
        dtype: precision of the nearest-token search; None = the embedding's.
        phrases: token ids of whole phrases, for the method bank.
        bigrams: how surprising tokens are, for fluency.

    Raises:
        UserError: no token is allowed, or the shapes do not match.
    """

    def __init__(
        self,
        embedding: Tensor,
        allowed: Tensor,
        dtype: torch.dtype | None = None,
        phrases: Sequence[Sequence[int]] = (),
        bigrams: Bigrams | None = None,
    ) -> None:
        if allowed.shape != embedding.shape[:1]:
            raise UserError(f"allowed has shape {tuple(allowed.shape)}; expected ({embedding.shape[0]},)")
        if not allowed.any():
            raise UserError("no token is allowed; shorten the blocklist or widen the allowlist")
        self.embedding, self.phrases = embedding.detach(), [tuple(phrase) for phrase in phrases]
        self.allowed = allowed.to(embedding.device)
        self.bigrams = bigrams and bigrams.to(embedding.device)
        self.ids = self.allowed.nonzero().squeeze(-1)  # (allowed,)
        # Allowed rows, the last one repeated up to a multiple of 64: GPUs are faster with aligned rows.
        self.rows = torch.cat([self.ids, self.ids[-1:].expand(-len(self.ids) % 64)])
        self.units = F.normalize(self.embedding[self.rows], dim=-1).to(dtype or embedding.dtype)  # (rows, width)

    def embed(self, ids: Tensor) -> Tensor:
        """(..., ) int64 token ids to (..., width) embeddings."""
        return self.embedding[ids]

    def start(self, ids: Tensor) -> Tensor:
        """Initial soft prompts: the embeddings of `ids`, with zeros for tokens that are not allowed."""
        return self.embedding[ids] * self.allowed[ids].unsqueeze(-1)

    def nearest(self, soft: Tensor) -> Tensor:
        """Project soft prompts onto the vocabulary.

        Args:
            soft: (lanes, tokens, width) float, the vectors being optimized.

        Returns:
            (lanes, tokens) int64, the nearest allowed token of each position by cosine similarity.

        Source: PEZ, arXiv:2302.03668, Algorithm 1, Proj.
        """
        found = torch.cat([argmax(products) for products in self._products(soft)])
        return self.rows[found].view(soft.shape[:2])

    def nearest_few(self, soft: Tensor, count: int) -> Tensor:
        """The `count` nearest allowed tokens of each position, for `nearest_among`.

        Args:
            soft: (lanes, tokens, width) float.
            count: at most the number of allowed tokens.

        Returns:
            (lanes, tokens, count) int64, places in `rows`.
        """
        found = [products.topk(count, dim=-1, sorted=False).indices for products in self._products(soft)]
        return torch.cat(found).view(*soft.shape[:2], count)

    def nearest_among(self, soft: Tensor, places: Tensor) -> Tensor:
        """Project soft prompts onto some tokens of each position.

        Args:
            soft: (lanes, tokens, width) float.
            places: (lanes, tokens, count) int64, as of `nearest_few`.

        Returns:
            (lanes, tokens) int64, the nearest of them by cosine similarity.
        """
        directions, flat = self._directions(soft), places.flatten(0, 1)
        at_once = max(1, _SIMILARITIES_AT_ONCE // (flat.shape[1] * directions.shape[1]))
        best = [
            (self.units[some] @ direction.unsqueeze(-1)).squeeze(-1).max(-1, keepdim=True).indices
            for some, direction in zip(flat.split(at_once), directions.split(at_once), strict=True)
        ]
        return self.rows[flat.gather(1, torch.cat(best))].view(soft.shape[:2])

    def _products(self, soft: Tensor) -> Iterator[Tensor]:
        """Cosine similarities to all rows, times the lengths of the soft vectors: blocks of (lanes * tokens, rows)."""
        directions = self._directions(soft)
        on_a_cpu = directions.device.type == "cpu"
        most = _BYTES_ON_A_CPU // directions.element_size() if on_a_cpu else _SIMILARITIES_AT_ONCE
        at_once = most // len(self.rows)
        for block in directions.split(max(16, at_once // 16 * 16)):
            yield block @ self.units.T

    def _directions(self, soft: Tensor) -> Tensor:
        """(lanes * tokens, width). A soft vector's length scales all its products equally, so it may be any."""
        return soft.flatten(0, 1).to(self.units.dtype)

    def random_ids(self, tokens: int, generator: torch.Generator) -> Tensor:
        """(tokens,) int64, drawn from the allowed tokens with a CPU generator."""
        rows = torch.randint(len(self.ids), (tokens,), generator=generator)
        return self.ids[rows.to(self.ids.device)]


def argmax(rows: Tensor) -> Tensor:
    """The index of the first maximum of each row, (count, width) to (count,).

    On a CPU, long rows are searched in blocks: the maximum of a block is four times faster to find than its place, and the
    place is needed for one block only. `max` gives the same index as `argmax`, four times faster in bfloat16.
    """
    width = rows.shape[-1]
    if rows.device.type != "cpu" or width % _BLOCKS or width < _BLOCKS**2:
        return rows.max(-1).indices
    blocks = rows.view(-1, _BLOCKS, width // _BLOCKS)
    first = blocks.amax(-1).max(-1).indices
    inside = blocks[torch.arange(len(blocks)), first].max(-1).indices
    return first * (width // _BLOCKS) + inside


class JointVocabulary(Vocabulary):
    """Token embeddings of several models side by side.

    Args:
        embedding: (vocab, total width) float.
        widths: of the models' embeddings.
        weights: of the models.
        allowed, dtype, bigrams: as for Vocabulary.
    """

    def __init__(
        self,
        embedding: Tensor,
        widths: Sequence[int],
        weights: Sequence[float],
        allowed: Tensor,
        dtype: torch.dtype | None = None,
        bigrams: Bigrams | None = None,
    ) -> None:
        super().__init__(embedding, allowed, dtype, bigrams=bigrams)
        self.widths = list(widths)
        parts = zip(self.embedding[self.rows].split(self.widths, -1), weights, strict=True)
        self.units = torch.cat([weight * F.normalize(part, dim=-1) for part, weight in parts], -1).to(self.units.dtype)

    def _directions(self, soft: Tensor) -> Tensor:
        """Between models, lengths matter: the part of each has unit length, so products are weighted sums of cosines."""
        return super()._directions(torch.cat([F.normalize(part, dim=-1) for part in soft.split(self.widths, -1)], -1))
