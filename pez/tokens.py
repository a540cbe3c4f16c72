"""A tokenizer's tokens as text: how each decodes, and which survive decoding and re-encoding (round-trip).

open_clip models use CLIP's byte-pair tokenizer or one from the hub (SentencePiece, WordPiece, byte-level). Nothing here
depends on the kind: every question is answered by decoding tokens and encoding the text again.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pez.errors import UserError
from pez.models.text_encoder import frame_of

READ = 64
"""context length used for encoding"""
_READ_AT_ONCE = 4096  # texts per call
_GROUPS = 8  # tokens, or pairs of tokens, tested in one text
_ROUNDS = 1  # random orders in which all tokens are tested


class Tokens:
    """The tokens of one tokenizer.

    Args:
        tokenizer: open_clip's, or a compatible one.
        count: number of rows of the model's token embedding.
    """

    def __init__(self, tokenizer: Any, count: int) -> None:
        self.tokenizer = tokenizer
        inner = getattr(tokenizer, "tokenizer", tokenizer)
        self._decode = getattr(tokenizer, "decode", None) or inner.decode
        self.ordinary = torch.ones(count, dtype=torch.bool)
        """(vocab,) bool: all tokens except special ones (start, end, padding)"""
        self.ordinary[[i for i in inner.all_special_ids if i < count]] = False
        self.ordinary[getattr(inner, "vocab_size", count) :] = False
        self._survives = torch.zeros(count, dtype=torch.bool)
        self._tried = ~self.ordinary

    def text_of(self, ids: Sequence[int]) -> str:
        """Decode token ids to the text a user pastes."""
        text: str = self._decode(list(ids))
        return text.strip()

    @functools.cached_property
    def texts(self) -> list[str]:
        """The text of each token; "" for special tokens."""
        return [self.text_of([i]) if ordinary else "" for i, ordinary in enumerate(self.ordinary.tolist())]

    def read(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts to token ids, without the ids that the tokenizer puts around them."""
        frame = self._frame
        found = []
        for start in range(0, len(texts), _READ_AT_ONCE):
            batch = list(texts[start : start + _READ_AT_ONCE])
            for row in self.tokenizer(batch, context_length=READ).tolist():
                ids = row[len(frame.before) :]
                found.append(ids[: ids.index(frame.after[0])] if frame.after[0] in ids else ids)
        return found

    def count(self, text: str) -> int:
        """How many tokens a text has, regardless of any context length."""
        frame = self._frame
        longest = len(text.encode("utf-8", "replace")) + len(frame.before) + 1  # a token has at least one byte
        ids = self.tokenizer([text], context_length=max(READ, longest + 1))[0].tolist()[len(frame.before) :]
        return ids.index(frame.after[0]) if frame.after[0] in ids else len(ids)

    def read_after_words(self, text: str) -> list[int]:
        """Encode a text that follows other words.

        Raises:
            UserError: no word of this tokenizer survives decoding and re-encoding.
        """
        if self._anchor is None:
            raise UserError(
                "no token of this model survives decoding and re-encoding; leave out the words after the prompt"
            )
        words = f"{self.texts[self._anchor]} {self.texts[self._anchor]}"
        alone, together = self.read([words, f"{words} {text.strip()}"])
        if together[: len(alone)] != alone:
            raise UserError(f"{text!r} changes the tokens of the words before it; expected words like 'in winter'")
        return together[len(alone) :]

    def round_trips(self, among: Tensor) -> Tensor:
        """Find the tokens that survive decoding and re-encoding in a prompt, whatever their order.

        Such a token decodes to text between spaces and encodes to itself there, also at the start of a text. If the
        tokenizer encodes the first word of every text differently (byte-level ones do), only after another word.

        Args:
            among: (vocab,) bool tokens to test; results are cached.

        Returns:
            (vocab,) bool, a subset of `among`.
        """
        new = (among & ~self._tried).nonzero().squeeze(-1).tolist()
        if new:
            self._tried[new] = True
            self._survives[self._try(new)] = True
        return among & self._survives

    def _try(self, ids: list[int]) -> list[int]:
        anchor = self._anchor
        if anchor is None:
            return []
        word = self.texts[anchor]
        ids = [
            i for i in ids if self.texts[i] and self.text_of([anchor, i, anchor]) == f"{word} {self.texts[i]} {word}"
        ]
        ids = [i for (i,) in self._surviving([(i,) for i in ids])]
        if self._first_is_like_others:
            ids = [i for i, read in zip(ids, self.read([self.texts[i] for i in ids]), strict=True) if read == [i]]
        # Next to each other, in random order: characters may merge, and a tokenizer need not split at spaces.
        order = torch.Generator().manual_seed(0)
        for _ in range(_ROUNDS):
            shuffled = [ids[i] for i in torch.randperm(len(ids), generator=order).tolist()]
            pairs = [tuple(shuffled[i : i + 2]) for i in range(0, len(shuffled), 2)]
            ids = [i for pair in self._surviving(pairs) for i in pair]
        return ids

    def _surviving(self, groups: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """The groups of tokens that survive between common words; many groups are tested in one text."""
        anchor = self._anchor
        assert anchor is not None, "some token survives"
        found: list[tuple[int, ...]] = []
        rows = [groups[i : i + _GROUPS] for i in range(0, len(groups), _GROUPS)]
        while rows:
            written = [[anchor, *itertools.chain(*row), anchor] for row in rows]
            again = []
            for row, ids, read in zip(rows, written, self.read([self.text_of(ids) for ids in written]), strict=True):
                # The first word only provides context; how it is encoded does not matter.
                if read[1 - len(ids) :] == ids[1:]:
                    found += row
                elif len(row) > 1:
                    again += [row[: len(row) // 2], row[len(row) // 2 :]]
            rows = again
        return found

    @functools.cached_property
    def _anchor(self) -> int | None:
        """A common word that survives next to itself; None if no token does."""
        words = [i for i, text in enumerate(self.texts) if 3 <= len(text) <= 8 and text.isalpha()]
        for start in range(0, len(words), 256):
            batch = words[start : start + 256]
            for i, read in zip(batch, self.read([self.text_of([i] * 3) for i in batch]), strict=True):
                if read[-2:] == [i, i] and self.text_of([i, i]) == f"{self.texts[i]} {self.texts[i]}":
                    return i
        return None

    @functools.cached_property
    def _first_is_like_others(self) -> bool:
        assert self._anchor is not None, "some token survives"
        return self.read([self.texts[self._anchor]]) == [[self._anchor]]

    @functools.cached_property
    def _frame(self) -> Any:
        return frame_of(self.tokenizer, READ)
