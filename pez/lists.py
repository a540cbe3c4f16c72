"""Allowlist, blocklist, and tokens that image generators treat as syntax.

What counts is the decoded text of a prompt. A word is anything between spaces, and any run of letters and digits in it.
Matching ignores case; for blocked words it also ignores accents, whether the word is spelled in one token or several.
"""

import re
import unicodedata
from collections.abc import Iterable

import torch
from torch import Tensor

from pez.errors import UserError
from pez.tokens import Tokens

# A1111, Forge, ComfyUI, InvokeAI and NovelAI: weights, alternatives, networks, escapes, comments. Midjourney: --option, and
# weights after ::. Dynamic prompts: __wildcard__ and $$.
_COMMANDS = re.compile(r"[()\[\]{}|<>\\#]|//|/\*|\*/|__|\$\$|--|::|^(AND|BREAK)$")
_PARTS_OF_COMMANDS = re.compile(r"[()\[\]{}|<>\\#/*_$:-]")
# Letters with strokes and ligatures, which Unicode does not decompose.
_PLAIN = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "\u0131": "i", "ħ": "h"}
)
_RUN = re.compile(r"[^\W_]+")
_PART = re.compile(r"(?:[^\W_]|[*?])+|(?:[^\w\s*?]|_)+")


def commands(tokens: Tokens, joining: bool = False) -> Tensor:
    """(vocab,) bool: tokens that image generators treat as syntax.

    Args:
        joining: tokens may merge with their neighbors, so parts of such syntax count as well.
    """
    if not joining:
        return torch.tensor([_COMMANDS.search(text) is not None for text in tokens.texts])
    return torch.tensor(
        [
            bool(_PARTS_OF_COMMANDS.search(text) or (text and (text in "AND" or text in "BREAK")))
            for text in tokens.texts
        ]
    )


def allowed(tokens: Tokens, words: Iterable[str], anywhere: bool = False) -> Tensor:
    """(vocab,) bool: tokens that match one of the words (`*` and `?` as in file names), ignoring case.

    Args:
        anywhere: include tokens that do not survive decoding and re-encoding.

    Raises:
        UserError: a word that is not a single token.
    """
    by_text: dict[str, list[int]] = {}
    for i, (text, ordinary) in enumerate(zip(tokens.texts, tokens.ordinary.tolist(), strict=True)):
        if ordinary:
            by_text.setdefault(_cased(text), []).append(i)
    matches: list[tuple[str, list[int]]] = []
    for word in words:
        cased = _cased(word.strip())
        if "*" in cased or "?" in cased:
            pattern = _pattern(cased)
            found = [i for text, ids in by_text.items() if pattern.fullmatch(text) for i in ids]
        else:
            found = by_text.get(cased, [])
        if not found:
            several = "; list its words separately" if len(word.split()) > 1 else "; choose words that are"
            raise UserError(f"{word!r} in the allowlist is not one token of this model{several}")
        matches.append((word, found))
    mask = torch.zeros_like(tokens.ordinary)
    mask[sorted({i for _, found in matches for i in found})] = True
    surviving = tokens.round_trips(mask)
    if anywhere or not surviving.any():
        return mask
    for word, found in matches:
        if not surviving[found].any():
            raise UserError(
                f"{word!r} in the allowlist occurs only as part of words in this model, so its text would not encode to it;"
                " remove it"
            )
    return surviving


def blocked(tokens: Tokens, words: Iterable[str], among: Tensor) -> Tensor:
    """(vocab,) bool: tokens to remove so that no prompt's text contains one of the words.

    A matching token is removed. If tokens can merge, so is every token that could begin a match ("blo" for "blood"). For a
    phrase ("new york"), the rarest of its tokens is removed, provided that all its words can be written.

    Args:
        words: `*` matches any characters and `?` matches one.
        among: (vocab,) bool, the tokens that prompts are made of.
    """
    index = _Index(tokens)
    # A token that round-trips stands between spaces. If other tokens are allowed, they may continue it.
    joins = bool((among & ~tokens.round_trips(among)).any())
    open_ended = among & ~_ends_words(tokens) if joins else torch.zeros_like(among)
    gone = torch.zeros_like(among)
    for word in words:
        whole = _plain(word.strip())
        gone |= index.tokens_with(whole, open_ended)
        parts = _PART.findall(whole)
        if len(parts) > 1:
            each = [index.tokens_with(part, open_ended) & among for part in parts]
            if all(mask.any() for mask in each):
                gone |= max(each, key=lambda mask: int(mask.nonzero()[0]))
    if gone.any() and joins:
        gone |= open_ended & torch.tensor(
            ["\ufffd" in text for text in tokens.texts]
        )  # bytes that can combine to any letter
    return gone


class _Index:
    """Tokens by the words that their texts contain."""

    def __init__(self, tokens: Tokens) -> None:
        self.texts = [_plain(text) for text in tokens.texts]
        self.by_word: dict[str, list[int]] = {}
        for i, text in enumerate(self.texts):
            for word in {*text.split(), *_RUN.findall(text)}:
                self.by_word.setdefault(word, []).append(i)

    def tokens_with(self, word: str, open_ended: Tensor) -> Tensor:
        """(vocab,) bool: tokens that contain a word, and open-ended tokens that contain its beginning."""
        whole, begun = torch.zeros_like(open_ended), torch.zeros_like(open_ended)
        stem = re.split(r"[*?]", word)[0]
        if stem == word:
            whole[self.by_word.get(word, [])] = True
        else:
            pattern = _pattern(word)
            whole[[i for held, ids in self.by_word.items() if pattern.fullmatch(held) for i in ids]] = True
        if word and stem == word and _RUN.search(word) is None:  # an emoji may be next to others
            whole[[i for i, text in enumerate(self.texts) if word in text]] = True
        if open_ended.any():
            fixed = word.split("*")[0]  # each ? is one character
            starts = [_pattern(fixed[:end]) for end in range(len(fixed) + 1)]
            for held, ids in self.by_word.items():
                if len(held) > len(fixed) and fixed == word:
                    continue
                if starts[min(len(held), len(fixed))].fullmatch(held[: len(fixed)]):
                    begun[ids] = True
        return whole | (begun & open_ended)


def _ends_words(tokens: Tokens) -> Tensor:
    """Tokens that are always followed by a space; CLIP's own tokenizer marks them."""
    decoder = getattr(tokens.tokenizer, "decoder", None)
    count = len(tokens.texts)
    if not isinstance(decoder, dict):
        return torch.zeros(count, dtype=torch.bool)
    return torch.tensor([str(decoder.get(i, "")).endswith("</w>") for i in range(count)])


def _pattern(word: str) -> re.Pattern[str]:
    return re.compile("".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in word), re.DOTALL)


def _cased(text: str) -> str:
    return unicodedata.normalize("NFC", text.casefold())


def _plain(text: str) -> str:
    """Remove case, accents, emoji variants and invisible characters."""
    apart = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(char for char in apart if unicodedata.category(char) not in ("Mn", "Cf")).translate(_PLAIN)
