"""The best distinct prompts that a search has scored, for each lane."""

import torch
from torch import Tensor

from pez.settings import PezSettings

_SPARE = 4  # prompts kept for each one asked for: in full precision, and as texts, their order may differ


class SeenPrompts:
    """Keeps the best distinct prompts of each lane; what it keeps for a lane depends on that lane's prompts alone.

    Args:
        lanes: prompts learned side by side.
        settings: their `tokens`, and how many candidates are asked for.
    """

    def __init__(self, lanes: int, settings: PezSettings, device: torch.device) -> None:
        size = _SPARE * settings.candidates_kept
        self.ids = torch.zeros(lanes, size, settings.tokens, dtype=torch.long, device=device)
        self.score = torch.full((lanes, size), -torch.inf, device=device)
        generator = torch.Generator().manual_seed(0)
        factors = torch.randint(-(2**62), 2**62, (settings.tokens,), generator=generator)
        self._factors = factors.to(device)  # of a hash of token ids, modulo 2**64

    def clear(self, lane: int) -> None:
        """Forget a lane's prompts."""
        self.score[lane] = -torch.inf

    def put(self, lane: int, seen: tuple[Tensor, Tensor] | None) -> None:
        """Give a lane the prompts of an earlier phase, as `of` returned them."""
        self.clear(lane)
        if seen is not None:
            ids, score = seen
            self.ids[lane, : len(ids)] = ids.to(self.ids.device)
            self.score[lane, : len(ids)] = score.to(self.score.device)

    def add(self, rows: slice, ids: Tensor, score: Tensor) -> None:
        """Add prompts.

        Args:
            rows: lanes.
            ids: (lanes, count, tokens) int64.
            score: (lanes, count) float.
        """
        ids = torch.cat([self.ids[rows], ids], 1)
        score = torch.cat([self.score[rows], score.to(self.score.dtype)], 1)
        hashes = (ids * self._factors).sum(-1)  # (lanes, size + count)
        # Best first, then stably by hash: of equal prompts, the best stays.
        by_score = score.argsort(dim=-1, descending=True, stable=True)
        hashes = hashes.gather(1, by_score)
        by_hash = hashes.argsort(dim=-1, stable=True)
        sorted_hashes = hashes.gather(1, by_hash)
        again = torch.zeros_like(sorted_hashes, dtype=torch.bool)
        again[:, 1:] = sorted_hashes[:, 1:] == sorted_hashes[:, :-1]
        order = by_score.gather(1, by_hash)
        once = score.gather(1, order).masked_fill(again, -torch.inf)
        best = once.argsort(dim=-1, descending=True, stable=True)[:, : self.score.shape[1]]
        self.score[rows] = once.gather(1, best)
        places = order.gather(1, best)
        self.ids[rows] = ids.gather(1, places.unsqueeze(-1).expand(-1, -1, ids.shape[2]))

    def of(self, lane: int) -> tuple[Tensor, Tensor]:
        """(n, tokens) int64 prompts of a lane, best first, and their (n,) scores, on the CPU."""
        there = self.score[lane] > -torch.inf
        return self.ids[lane][there].cpu(), self.score[lane][there].cpu()
