"""Phrases for prompts: read from files, and as tokens of a model. The first part is importable without torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pez.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from pez.tokens import Tokens

_LARGEST = 64 * 2**20  # bytes of a file


def read_phrases(given: Any) -> tuple[str, ...]:
    """Phrases, each once and without surrounding spaces; @FILE stands for the lines of a file, except empty ones.

    Raises:
        UserError: a file cannot be read or has no phrases, or a value is not a text.
    """
    if isinstance(given, str):
        given = (given,)
    if not isinstance(given, Iterable):
        raise UserError(f"bank is {given!r}; expected phrases, or @FILE with one per line")
    found: dict[str, None] = {}
    for each in given:
        if not isinstance(each, str) or not each.strip():
            raise UserError(f"bank contains {each!r}; expected phrases, or @FILE with one per line")
        phrases = _lines(each[1:]) if each.startswith("@") else [each]
        found.update(dict.fromkeys(" ".join(phrase.split()) for phrase in phrases))
    return tuple(found)


def _lines(name: str) -> list[str]:
    file = Path(name).expanduser()
    try:
        if file.stat().st_size > _LARGEST:
            raise UserError(f"bank names {name}, which has more than {_LARGEST >> 20} MiB; expected a list of phrases")
        lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"bank names @{name}, which cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"bank names @{name}, which is not UTF-8 text; expected one phrase per line") from error
    if handle := next((line for line in lines if line.startswith("@")), None):
        raise UserError(
            f"bank names @{name}, which has the line {handle[:40]!r}; expected phrases, which do not begin with @"
        )
    if not lines:
        raise UserError(f"bank names @{name}, which is empty; expected one phrase per line")
    return lines


def phrase_tokens(tokens: Tokens, phrases: Iterable[str], allowed: Tensor, longest: int) -> list[tuple[int, ...]]:
    """The token ids of the phrases that fit, are allowed and survive decoding and re-encoding.

    Args:
        allowed: (vocab,) bool.
        longest: tokens of a prompt.

    Raises:
        UserError: there are none.
    """
    given = list(phrases)
    read = tokens.read(given)
    whole = [ids for ids in read if 0 < len(ids) <= longest and bool(allowed[ids].all())]
    again = tokens.read([tokens.text_of(ids) for ids in whole])
    found = [tuple(ids) for ids, same in zip(whole, again, strict=True) if ids == same]
    if not found:
        raise UserError(
            f"no phrase of the bank can be used, of {len(given)}; expected phrases of at most {longest} tokens that are "
            "not blocked"
        )
    return list(dict.fromkeys(found))
