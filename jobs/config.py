"""`--config FILE` and `--print-config`: options in a YAML file, under their names without dashes in front.

    input: [photos]
    output: prompts
    tokens: 16

Options of the command line replace those of the file. What `--print-config` writes can be given as `--config`.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import yaml

from pez.errors import UserError
from pez.fluency import Texts

if TYPE_CHECKING:
    from jobs.arguments import Flag


def with_config(words: Sequence[str], flags: Sequence[Flag]) -> list[str]:
    """Replace `--config FILE` by the options of the file.

    Values that are the default are left out, so that they do not count as given.

    Raises:
        UserError: the file cannot be read, or an entry is no option of the command.
    """
    end = words.index("--") if "--" in words else len(words)
    given, path = _without_config(list(words[:end]))
    if path is None:
        return list(words)
    names = {word.split("=")[0] for word in given if word.startswith("--")}
    has_positional = _has_positional(given, flags)
    added: list[str] = []
    positional: list[str] = []
    for flag, value in _entries(path, flags):
        if flag.positional:
            positional += [] if has_positional else [str(one) for one in value]
        elif flag.name not in names:
            added += [flag.name] if flag.hint is bool else [f"{flag.name}={one}" for one in value]
    return [*positional, *given, *added, *words[end:]]


def _has_positional(words: Sequence[str], flags: Sequence[Flag]) -> bool:
    """Whether a word is neither an option nor the value of one."""
    by_name = {flag.name: flag for flag in flags}
    values = 0.0  # that the option before may still have
    for word in words:
        if word.startswith("--"):
            flag = by_name.get(word.split("=")[0])
            takes = flag is not None and flag.hint is not bool and "=" not in word
            values = (math.inf if flag is not None and flag.several else 1) if takes else 0
        elif values:
            values -= 1
        elif not word.startswith("-"):
            return True
    return False


def _without_config(words: list[str]) -> tuple[list[str], str | None]:
    path = None
    left = []
    while words:
        word = words.pop(0)
        if word == "--config":
            if not words:
                raise UserError("--config has no value; expected a YAML file")
            path = words.pop(0)
        elif word.startswith("--config="):
            path = word.partition("=")[2]
        else:
            left.append(word)
    return left, path


def _entries(path: str, flags: Sequence[Flag]) -> list[tuple[Flag, list[Any]]]:
    """The options of a file that differ from their defaults."""
    by_name = {flag.name.removeprefix("--").replace("_", "-"): flag for flag in flags}
    entries = []
    for name, value in _read(path).items():
        wanted = str(name).removeprefix("--").replace("_", "-")
        if wanted not in by_name:
            close = difflib.get_close_matches(wanted, by_name, 1)
            advice = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"--config {path}: unknown option {name!r}{advice}")
        flag = by_name[wanted]
        values = value if isinstance(value, list) else [value]
        if any(isinstance(one, dict | list) for one in values) or (isinstance(value, list) and not flag.several):
            kind = "a value or a list of values" if flag.several else "one value"
            raise UserError(f"--config {path}: {name} is {value!r}; expected {kind}")
        if flag.hint is bool and not isinstance(value, bool | None):
            raise UserError(f"--config {path}: {name} is {value!r}; expected true or false")
        default = list(flag.default) if isinstance(flag.default, tuple) else [flag.default]
        if value is None or value is False or values == default:
            continue
        entries.append((flag, values))
    return entries


def _read(path: str) -> dict[Any, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"--config {path} holds a {type(values).__name__}; expected lines like `tokens: 16`")
    return values


def print_config(options: Any, flags: Sequence[Flag]) -> None:
    """Print all options that have a value, as YAML."""
    values: dict[str, Any] = {}
    for flag in flags:
        value = options
        for name in flag.path:
            value = getattr(value, name)
        if isinstance(value, tuple):
            value = list(value.names if isinstance(value, Texts) else value)
        if value not in (None, []):
            plain = value if isinstance(value, bool | int | float | str | list) else str(value)
            values[flag.name.removeprefix("--")] = plain
    yaml.safe_dump(values, sys.stdout, sort_keys=False, allow_unicode=True, width=1000)
