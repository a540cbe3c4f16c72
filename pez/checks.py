"""Checks of the values of settings."""

import math
import numbers
import operator
import os
from collections.abc import Iterable
from typing import Any

from pez import offensive
from pez.errors import UserError


def listed(name: str, word: str) -> list[str]:
    """The words of a list, which is named by @; a word is itself."""
    if word.startswith(offensive.NAME) and name == "blocklist":
        return [offensive.with_version(word)]
    if not word.startswith("@") or len(word) == 1:
        return [word]
    try:
        with open(os.path.expanduser(word[1:]), encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(
            f"{name} has {word}, which cannot be read: {reason}; expected a file with one word per line"
        ) from error
    words = [line for line in lines if line and not line.startswith("#")]
    if not words:
        raise UserError(f"{name} has {word}, which lists no words; expected one per line")
    return words


def whole(name: str, value: Any, least: int | None) -> int:
    """Accept any integer type (NumPy's too), but no float."""
    try:
        found = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = None
    if found is None:
        raise UserError(f"{name} is {value!r}; expected a whole number")
    if least is not None and found < least:
        raise UserError(f"{name} is {value}; expected {least} or more")
    return found


def number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise UserError(f"{name} is {value!r}; expected a finite number")
    return float(value)


def expect_template(value: Any) -> None:
    """Refuse a template that does not say where the prompt stands."""
    places = value.count("{}") if isinstance(value, str) else 0
    if places != 1:
        found = f"with {places} of {{}}" if places else "without {}"
        raise UserError(f"template is {value!r}, {found}; expected it once, as in 'a tiger in the style of {{}}'")


def words(name: str, value: Any) -> tuple[str, ...]:
    """Words as a tuple; a plain string is one word, not a sequence of letters."""
    words = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else None
    if words is not None and all(isinstance(word, str) for word in words):
        words = tuple(one for word in words for one in listed(name, word))
    if words is None or not all(isinstance(word, str) and word.strip() for word in words):
        raise UserError(f"{name} is {value!r}; expected words, like ('red', 'blue*')")
    # "red, blue" would be read as one phrase, and only one of its words would be blocked.
    if joined := next((word for word in words if "," in word.strip(" ,")), None):
        raise UserError(f"{name} contains {joined!r}; expected one word or phrase each, without commas")
    return words
