"""Which tokens are words: a word is one that people write by itself.

A vocabulary of pieces holds "ing", "chley" and "esi", which stay themselves as text and are ends of words. No rule about the
pieces tells words apart; `words.txt.xz` does: how often people write each word, from wordfreq (Robyn Speer, CC BY-SA 4.0),
written by `python -m jobs.list_words`. A token is a word where

- it is in the list (English: 2.6 or more on the Zipf scale, four in ten million words; other languages: 4.0 or more),
- it is common if it is short (3.2 for up to three letters, of which nearly all are an abbreviation of something) and no single
  Latin letter but a, i and o, and
- with CLIP's own tokenizer, whose tokens carry a mark at the end of words and may be ends alone: people write it as a word at
  least 3 times of 10, and not as the end of words that are no tokens.
"""

import functools
import lzma
import unicodedata
from pathlib import Path

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from pez.tokens import Tokens

_LIST = Path(__file__).parent / "words.txt.xz"
_SHARE = 0.3  # of a token's use that must be as a word
_SHORT, _SHORT_IN_A_MILLION = 3, 10 ** (3.2 - 3)
_ONE_LETTER = "aio"  # words of Latin letters


def word_tokens(tokens: Tokens) -> Tensor:
    """(vocab,) bool: tokens that are words and that stay themselves as text."""
    # CLIP's own vocabulary was made of English text: in it other languages' words are mostly pieces of English ones.
    ends = isinstance(tokens.tokenizer, SimpleTokenizer)
    listed = words_by_language()[0] if ends else all_words()
    lowered = [text.lower() for text in tokens.texts]
    use = torch.tensor([listed.get(text, 0.0) for text in lowered], dtype=torch.float64)
    short = torch.tensor([len(text) <= _SHORT for text in lowered])
    letter = torch.tensor([len(text) == 1 and text.isascii() and text not in _ONE_LETTER for text in lowered])
    mask = tokens.round_trips((use > short * _SHORT_IN_A_MILLION) & ~letter & tokens.ordinary)
    return mask & (use >= _SHARE * (use + _as_piece(tokens, listed))) if ends else mask


def letter_tokens(tokens: Tokens) -> Tensor:
    """(vocab,) bool: tokens of letters alone that stay themselves as text."""
    mask = torch.tensor([bool(text) and is_letters(text) for text in tokens.texts])
    return tokens.round_trips(mask & tokens.ordinary)


def _as_piece(tokens: Tokens, listed: dict[str, float]) -> Tensor:
    """(vocab,) float: how often each token is written as a piece of a word that is no token."""
    whole = {text.lower() for text in tokens.texts}
    words = [word for word in listed if word not in whole]
    use = torch.zeros(len(tokens.texts), dtype=torch.float64)
    for word, ids in zip(words, tokens.read(words), strict=True):
        use[sorted({i for i in ids if i < len(use)})] += listed[word]
    return use


def is_letters(text: str) -> bool:
    """True for letters and the marks on them, as the vowels of Hindi are."""
    kinds = [unicodedata.category(sign)[0] for sign in text]
    return kinds[:1] == ["L"] and set(kinds) <= {"L", "M"}


@functools.cache
def words_by_language() -> tuple[dict[str, float], dict[str, float]]:
    """English words and those of other languages: how many of each there are in a million."""
    found: tuple[dict[str, float], dict[str, float]] = ({}, {})
    language = -1
    with lzma.open(_LIST, "rt", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("#"):
                continue
            tenths, *words = line.split()
            if not words:  # a heading
                language += 1
                continue
            found[language].update(dict.fromkeys(words, 10 ** (int(tenths) / 10 - 3)))
    return found


@functools.cache
def all_words() -> dict[str, float]:
    """Words of any language."""
    english, others = words_by_language()
    return {word: max(english.get(word, 0.0), others.get(word, 0.0)) for word in english | others}
