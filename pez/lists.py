"""Words that a user allows or blocks, and signs that programs take as commands, as tokens.

What counts is the text that a prompt becomes. There, a word is what stands between spaces, and any run of letters and digits
inside it. A word of a list matches in any case; a blocked one also with or without accents, spelled in one token or several.
"""

import re
import unicodedata
from collections.abc import Iterable

import torch
from torch import Tensor

from pez.errors import UserError
from pez.tokens import Tokens

# A1111 and ComfyUI: weights, alternatives, networks, escapes, comments, wildcards.
_COMMANDS = re.compile(r"[()\[\]{}|<>\\#]|//|/\*|\*/|__|\$\$|^(AND|BREAK)$")
# Letters that are other letters with a stroke or a tie, which Unicode does not take apart.
_PLAIN = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "\u0131": "i", "ħ": "h"}
)
_RUN = re.compile(r"[^\W_]+")
_PART = re.compile(r"(?:[^\W_]|[*?])+|(?:[^\w\s*?]|_)+")


def commands(tokens: Tokens) -> Tensor:
    """(vocab,) bool: tokens that image programs take as commands."""
    return torch.tensor([_COMMANDS.search(text) is not None for text in tokens.texts])


def allowed(tokens: Tokens, words: Iterable[str], anywhere: bool = False) -> Tensor:
    """(vocab,) bool: tokens that are one of the words (`*` and `?` as in file names), in any case.

    Args:
        anywhere: also tokens that do not stay themselves as text.

    Raises:
        UserError: a word that no single token spells; one line.
    """
    folded = [_cased(text) for text in tokens.texts]
    masks: list[tuple[str, Tensor]] = []
    for word in words:
        pattern = _pattern(_cased(word.strip()))
        mask = torch.tensor([pattern.fullmatch(text) is not None for text in folded]) & tokens.ordinary
        if not mask.any():
            several = "; give its words one by one" if len(word.split()) > 1 else "; name words that are"
            raise UserError(f"{word!r} in the allowlist is not one token of this model{several}")
        masks.append((word, mask))
    found = torch.stack([mask for _, mask in masks]).any(0)
    surviving = tokens.round_trips(found)
    if anywhere or not surviving.any():
        return found
    for word, mask in masks:
        if not (mask & surviving).any():
            raise UserError(
                f"{word!r} in the allowlist is only a part of words in this model, and would be read as another;"
                " leave it out"
            )
    return surviving


def blocked(tokens: Tokens, words: Iterable[str], among: Tensor) -> Tensor:
    """(vocab,) bool: tokens that must go so that no prompt's text holds one of the words.

    A token that matches goes. Where tokens may join, so does every one that could begin a match ("blo" for "blood"). Of words
    that stand together ("new york") the one that is rarest as a token goes, if all of them can be written.

    Args:
        words: `*` stands for any signs and `?` for one.
        among: (vocab,) bool tokens that prompts are made of.
    """
    index = _Index(tokens)
    # A token that lasts stands between spaces; where others are among them, it may be gone on with as well.
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
        gone |= open_ended & torch.tensor(["\ufffd" in text for text in tokens.texts])  # bytes that join to any letter
    return gone


class _Index:
    """Tokens by the words that their texts hold."""

    def __init__(self, tokens: Tokens) -> None:
        self.texts = [_plain(text) for text in tokens.texts]
        self.by_word: dict[str, list[int]] = {}
        for i, text in enumerate(self.texts):
            for word in {*text.split(), *_RUN.findall(text)}:
                self.by_word.setdefault(word, []).append(i)

    def tokens_with(self, word: str, open_ended: Tensor) -> Tensor:
        """(vocab,) bool: tokens that hold a word, and those that are open-ended with the beginning of it."""
        whole, begun = torch.zeros_like(open_ended), torch.zeros_like(open_ended)
        stem = re.split(r"[*?]", word)[0]
        if stem == word:
            whole[self.by_word.get(word, [])] = True
        else:
            pattern = _pattern(word)
            whole[[i for held, ids in self.by_word.items() if pattern.fullmatch(held) for i in ids]] = True
        if word and stem == word and _RUN.search(word) is None:  # an emoji may stand among others
            whole[[i for i, text in enumerate(self.texts) if word in text]] = True
        if open_ended.any():
            fixed = word.split("*")[0]  # with each ? for one sign
            starts = [_pattern(fixed[:end]) for end in range(len(fixed) + 1)]
            for held, ids in self.by_word.items():
                if len(held) > len(fixed) and fixed == word:
                    continue
                if starts[min(len(held), len(fixed))].fullmatch(held[: len(fixed)]):
                    begun[ids] = True
        return whole | (begun & open_ended)


def _ends_words(tokens: Tokens) -> Tensor:
    """Tokens behind which a space always comes: CLIP's own tokenizer marks them."""
    decoder = getattr(tokens.tokenizer, "decoder", None)
    count = len(tokens.texts)
    if not isinstance(decoder, dict):
        return torch.zeros(count, dtype=torch.bool)
    return torch.tensor([str(decoder.get(i, "")).endswith("</w>") for i in range(count)])


def _pattern(word: str) -> re.Pattern[str]:
    return re.compile("".join({"*": ".*", "?": "."}.get(sign, re.escape(sign)) for sign in word), re.DOTALL)


def _cased(text: str) -> str:
    return unicodedata.normalize("NFC", text.casefold())


def _plain(text: str) -> str:
    """Without case, accents, emoji's variants and what cannot be seen."""
    apart = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(sign for sign in apart if unicodedata.category(sign) not in ("Mn", "Cf")).translate(_PLAIN)
