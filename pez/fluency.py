"""How surprising a prompt's tokens are: a bigram model over a model's vocabulary, counted from texts.

The probability of a token w after v backs off from pairs to single tokens:

    P(w | v) = (n(v w) + MASS P(w)) / (n(v) + MASS),    P(w) = (n(w) + K) / (N + K V)

with counts n, N tokens in all texts, and V tokens in the vocabulary. A text begins after the pseudo-token V. The surprise of a
prompt is the mean of -ln P over its tokens, in nats; its perplexity is exp of that.

Source: hierarchical Dirichlet smoothing, MacKay and Peto 1995, "A hierarchical Dirichlet language model"; add-K for the rest.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pez.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from pez.settings import PezSettings
    from pez.tokens import Tokens

MASS = 2.0  # pseudo-counts of single tokens after each token
K = 0.1  # added to the count of each token
_LARGEST = 64 * 2**20  # bytes of a file


class Texts(tuple[str, ...]):
    """Texts that have been read from files; such a tuple is not read again."""

    names: tuple[str, ...] = ()
    """of the files"""


def read_texts(given: Any) -> Texts:
    """The lines of files, except empty ones.

    Args:
        given: a name or names of UTF-8 files, with or without @; Texts are returned as they are.

    Raises:
        UserError: a file cannot be read, is too large, or has no text.
    """
    if isinstance(given, Texts):
        return given
    names = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (given,)
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(f"fluency_text is {given!r}; expected the name of a file with one text per line")
    found = Texts(line for name in names for line in _lines(name.removeprefix("@")))
    found.names = names
    return found


def _lines(name: str) -> list[str]:
    file = Path(name).expanduser()
    try:
        if file.stat().st_size > _LARGEST:
            raise UserError(f"fluency_text is {name}, above {_LARGEST >> 20} MiB; expected a sample of its lines")
        lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"fluency_text is {name}, which cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"fluency_text is {name}, which is not UTF-8 text; expected one text per line") from error
    if not lines:
        raise UserError(f"fluency_text is {name}, which is empty; expected one text per line")
    return lines


def expect_texts(settings: PezSettings) -> Texts:
    """The texts of settings with fluency.

    Raises:
        UserError: there are none.
    """
    if not settings.fluency_text:
        raise UserError(
            f"fluency is {settings.fluency:g}, but there is no fluency_text; expected a file with one text per line"
        )
    return Texts(settings.fluency_text)


class Bigrams:
    """A bigram model.

    Args:
        rows: token ids of each text.
        count: tokens of the vocabulary.
    """

    def __init__(self, rows: Sequence[Sequence[int]], count: int) -> None:
        import torch

        self.count = count
        rows = [row for row in rows if row]
        after = torch.tensor([i for row in rows for i in row], dtype=torch.long)
        before = torch.tensor([i for row in rows for i in (count, *row[:-1])], dtype=torch.long)
        single = torch.bincount(after, minlength=count).double()
        self.single = (single + K) / (len(after) + K * count)  # (vocab,) double
        self.starts = torch.bincount(before, minlength=count + 1).double()  # (vocab + 1,) n(v), as the first of a pair
        self.pairs, pair_counts = torch.unique(before * count + after, return_counts=True)  # ascending
        self.pair_counts = pair_counts.double()

    def to(self, device: Any) -> Bigrams:
        """This model on a device."""
        moved = object.__new__(Bigrams)
        moved.count = self.count
        for name in ("single", "starts", "pairs", "pair_counts"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    def surprise_of_pairs(self, before: Tensor, after: Tensor) -> Tensor:
        """(...,) int64 tokens, and those after them, to (...,) double -ln P; `count` before the first token of a text."""
        import torch

        keys = before * self.count + after
        places = torch.searchsorted(self.pairs, keys).clamp_(max=len(self.pairs) - 1)
        there = self.pair_counts[places].masked_fill(self.pairs[places] != keys, 0.0)
        probability: Tensor = (there + MASS * self.single[after]) / (self.starts[before] + MASS)
        return -probability.log()

    def surprise(self, ids: Tensor) -> Tensor:
        """(..., tokens) int64 prompts to (...,) double, the mean surprise of their tokens, in nats."""
        start = ids.new_full((*ids.shape[:-1], 1), self.count)
        return self.surprise_of_pairs(_joined(start, ids[..., :-1]), ids).mean(-1)

    def surprise_of_swaps(self, ids: Tensor, position: int, options: Tensor) -> Tensor:
        """What the mean surprise of prompts has of one position, with other tokens there.

        Args:
            ids: (lanes, tokens) int64 prompts.
            options: (count,) int64 tokens.

        Returns:
            (lanes, count) double.
        """
        before = ids[:, position - 1, None] if position else ids.new_full((len(ids), 1), self.count)
        found = self.surprise_of_pairs(before.expand(-1, len(options)), options.expand(len(ids), -1))
        if position < ids.shape[1] - 1:
            after = ids[:, position + 1, None].expand(-1, len(options))
            found = found + self.surprise_of_pairs(options.expand(len(ids), -1), after)
        return found / ids.shape[1]

    def perplexity(self, ids: Sequence[int]) -> float | None:
        """Of the tokens of a text; None if it has none."""
        import torch

        return math.exp(self.surprise(torch.tensor(ids, device=self.single.device)).item()) if ids else None


def _joined(*parts: Tensor) -> Tensor:
    import torch

    return torch.cat(parts, -1)


@functools.lru_cache(maxsize=2)
def bigrams_of(tokens: Tokens, texts: Texts) -> Bigrams:
    """The bigram model of a tokenizer's tokens in texts, up to the 64th of each text."""
    return Bigrams(tokens.read(texts), len(tokens.ordinary))
