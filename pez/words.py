"""Which tokens are whole words, as people write them.

A subword vocabulary contains "ing", "chley" and "esi", which survive decoding and re-encoding but are only ends of words. No
rule about the pieces can tell words apart. `words.txt.xz` can: it holds word frequencies from wordfreq (Robyn Speer,
CC BY-SA 4.0), written by `python -m jobs.list_words`. A token counts as a word if

- it is in the list (English: 2.6 or more on the Zipf scale, four in ten million words; other languages: 4.0 or more);
- it is common if it is short (3.2 for up to three letters, nearly all of which abbreviate something), and is not a single
  Latin letter other than a, i and o; and
- with CLIP's own tokenizer, which marks the ends of words and has tokens that are only such ends: at least 3 in 10 of its
  uses are as a word, and not as the end of a word that is not a token.
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
_SHARE = 0.3  # minimum share of a token's uses as a word
_SHORT, _SHORT_IN_A_MILLION = 3, 10 ** (3.2 - 3)
_ONE_LETTER = "aio"  # single Latin letters that are words


def word_tokens(tokens: Tokens) -> Tensor:
    """(vocab,) bool: tokens that are words and survive decoding and re-encoding."""
    # CLIP's own vocabulary was built from English text: words of other languages in it are mostly pieces of English words.
    ends = isinstance(tokens.tokenizer, SimpleTokenizer)
    listed = words_by_language()[0] if ends else all_words()
    lowered = [text.lower() for text in tokens.texts]
    use = torch.tensor([listed.get(text, 0.0) for text in lowered], dtype=torch.float64)
    short = torch.tensor([len(text) <= _SHORT for text in lowered])
    letter = torch.tensor([len(text) == 1 and text.isascii() and text not in _ONE_LETTER for text in lowered])
    mask = tokens.round_trips((use > short * _SHORT_IN_A_MILLION) & ~letter & tokens.ordinary)
    return mask & (use >= _SHARE * (use + _as_piece(tokens, listed))) if ends else mask


def letter_tokens(tokens: Tokens) -> Tensor:
    """(vocab,) bool: tokens made of letters only that survive decoding and re-encoding."""
    mask = torch.tensor([bool(text) and is_letters(text) for text in tokens.texts])
    return tokens.round_trips(mask & tokens.ordinary)


def _as_piece(tokens: Tokens, listed: dict[str, float]) -> Tensor:
    """(vocab,) float: how often each token is used as a piece of a word that is not a token."""
    whole = {text.lower() for text in tokens.texts}
    words = [word for word in listed if word not in whole]
    use = torch.zeros(len(tokens.texts), dtype=torch.float64)
    for word, ids in zip(words, tokens.read(words), strict=True):
        use[sorted({i for i in ids if i < len(use)})] += listed[word]
    return use


def is_letters(text: str) -> bool:
    """True for letters and combining marks, such as Hindi vowels."""
    kinds = [unicodedata.category(character)[0] for character in text]
    return kinds[:1] == ["L"] and set(kinds) <= {"L", "M"}


@functools.cache
def words_by_language() -> tuple[dict[str, float], dict[str, float]]:
    """Occurrences per million words, for English and for other languages."""
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
    """Words of all languages."""
    english, others = words_by_language()
    return {word: max(english.get(word, 0.0), others.get(word, 0.0)) for word in english | others}
