"""`@offensive` in a blocklist: the list of offensive English words of better-profanity (MIT license), which is an extra.

The list is read as data; no code of the package runs. The installed version becomes a part of the name, since another version
may block other words: `@offensive 0.7.0`.
"""

import importlib.metadata
from collections.abc import Iterable

from pez.errors import UserError

NAME = "@offensive"
_PACKAGE, _FILE = "better-profanity", "better_profanity/profanity_wordlist.txt"


def with_version(word: str) -> str:
    """Complete the name of the list with the installed version.

    Raises:
        UserError: it is not installed, or has another version than the name says.
    """
    try:
        installed = importlib.metadata.version(_PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"blocklist has {NAME}, but {_PACKAGE} is not installed; install it with pip install {_PACKAGE}"
        ) from error
    wanted = word.removeprefix(NAME).strip()
    if wanted not in ("", installed):
        raise UserError(f"blocklist has {word}, but {_PACKAGE} {installed} is installed; install {_PACKAGE}=={wanted}")
    return f"{NAME} {installed}"


def expanded(words: Iterable[str]) -> list[str]:
    """Replace the name of the list by its words."""
    found: list[str] = []
    for word in words:
        if word.startswith(NAME):
            with_version(word)
            text = importlib.metadata.distribution(_PACKAGE).locate_file(_FILE)
            with open(str(text), encoding="utf-8") as file:
                found += [line.strip() for line in file if line.strip()]
        else:
            found.append(word)
    return found
