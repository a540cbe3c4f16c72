"""Build a command line from dataclasses: every field is an option, and its docstring is the help text.

Parsing uses argparse. A repeated list option adds to the list; errors are one line; values that make no sense for any option
(an empty text, a non-finite number) are refused.
"""

import argparse
import ast
import dataclasses
import difflib
import inspect
import itertools
import math
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from jobs.config import print_config, with_config
from pez.errors import UserError

Options = TypeVar("Options")

_MOST = 2**63 - 1  # the largest value of a table column


@dataclasses.dataclass(frozen=True)
class Group:
    """The heading of a field in the help, as in `Annotated[bool, Group("cluster")]`."""

    title: str


POSITIONAL = "positional"
"""marks a field that is given without its name"""

_GROUPS = ("input and output", "model", "method", "verification", "cluster")


def read(options: type[Options], description: str | None, prog: str, words: Sequence[str]) -> Options:
    """Parse the words of a command line.

    Raises:
        UserError: an unknown option or an invalid value.
        SystemExit: after printing the help.
    """
    parser = Parser(prog=prog, description=description)
    flags = list(flags_of(options))
    parser.add(flags, documented=not {"-h", "--help"}.isdisjoint(words), brief="-h" in words and "--help" not in words)
    values = vars(parser.parse_intermixed_args(with_config(words, flags)))
    printing = values.pop("print_config", False)
    expect_usable(values, {flag.path[-1]: flag.name.upper() for flag in flags if flag.positional})
    try:
        chosen = _built(options, flags, values)
        if check := getattr(chosen, "check", None):
            check(frozenset(values))
    except ValueError as error:  # the message may begin with the name of a field
        field, space, rest = str(error).partition(" ")
        named = {flag.path[-1]: flag.name for flag in flags}
        raise UserError(f"{named.get(field, field)}{space}{rest}") from error
    if printing:
        print_config(chosen, flags)
        raise SystemExit(0)
    return chosen


@dataclasses.dataclass(frozen=True)
class Flag:
    """One option of a command."""

    path: tuple[str, ...]
    """names of the fields that lead to it, its own last"""
    owner: type
    """the dataclass that defines it"""
    hint: Any
    """type of its value, or of each value if it takes several"""
    several: bool
    repeats: bool
    """a repeated option adds to the values; otherwise the last one counts"""
    positional: bool
    default: Any
    group: str

    @property
    def name(self) -> str:
        return self.path[-1] if self.positional else option_of(self.path[-1])

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING


def flags_of(options: type, path: tuple[str, ...] = (), group: str = _GROUPS[0]) -> Iterator[Flag]:
    """The options of a dataclass and its nested dataclasses."""
    hints = typing.get_type_hints(options, include_extras=True)
    for field in typing.cast(Any, options).__dataclass_fields__.values():  # constructor arguments, including InitVar
        hint, marks = hints[field.name], list[Any]()
        if isinstance(hint, dataclasses.InitVar):
            hint = hint.type
        if typing.get_origin(hint) is Annotated:
            hint, *marks = typing.get_args(hint)
        here = next((mark.title for mark in marks if isinstance(mark, Group)), group)
        if dataclasses.is_dataclass(hint):
            yield from flags_of(typing.cast(type, hint), (*path, field.name), here)
            continue
        several = repeats = typing.get_origin(hint) is tuple
        hint = typing.get_args(hint)[0] if several else hint
        if typing.get_origin(hint) in (types.UnionType, typing.Union):  # str | None, or str | tuple[str, ...]
            several = any(typing.get_origin(kind) is tuple for kind in typing.get_args(hint))
            hint = next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
        yield Flag((*path, field.name), options, hint, several, repeats, POSITIONAL in marks, field.default, here)


def option_of(field: str) -> str:
    """`--verify-images` for `verify_images`."""
    return "--" + field.replace("_", "-")


class Parser(argparse.ArgumentParser):
    """argparse that raises exceptions and does not accept abbreviated options."""

    def __init__(self, prog: str, description: str | None, default: str | None = argparse.SUPPRESS) -> None:
        if description and prog.startswith("pez "):  # the name that the user typed
            description = description.replace("python -m jobs.", "pez ").replace("jobs.", "pez ")
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=_Formatter,
            allow_abbrev=False,
            argument_default=default,
            usage=f"{prog} [options]",
        )

    def add(self, flags: Sequence[Flag], documented: bool, brief: bool = False) -> None:
        """Add options.

        Args:
            documented: include the help texts, which are read from the source of the dataclasses.
            brief: the help shows the first group alone.
        """
        self.add_argument("--config", metavar="FILE", help="YAML file with options, such as `tokens: 16`")
        self.add_argument("--print-config", action="store_true", help="print all options as YAML and exit")
        docs = {owner: field_docs(owner) for owner in {f.owner for f in flags}} if documented else {}
        positional = [flag.name.upper() + "..." * flag.several for flag in flags if flag.positional]
        self.usage = " ".join([self.prog, *positional, "[options]"])
        titles = sorted({flag.group for flag in flags}, key=lambda t: _GROUPS.index(t) if t in _GROUPS else 99)
        for title in titles:
            group = self.add_argument_group(title)
            hidden = brief and title != titles[0]
            for flag in flags:
                if flag.group == title:
                    _add(group, flag, docs.get(flag.owner, {}).get(flag.path[-1], ""), hidden)
        if brief and len(titles) > 1:
            self.epilog = f"{self.prog} --help also shows the options of: {', '.join(titles[1:])}"

    def parse_known_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Like argparse, but report a misspelled option before a missing one."""
        known = {option for action in self._actions for option in action.option_strings}
        given = itertools.takewhile(lambda word: word != "--", args or ())
        unknown = [word for word in given if word[:2] == "--" and word.split("=")[0] not in known]
        if unknown and "--help" not in args and "-h" not in args:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return super().parse_known_intermixed_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        known = [option for action in self._actions for option in action.option_strings]
        advice = f"{self.prog} --help lists the options"
        if message.startswith("unrecognized arguments: "):
            found = next(iter(message.removeprefix("unrecognized arguments: ").split()), "")
            close = difflib.get_close_matches(found.split("=")[0].replace("_", "-"), known, 1)
            advice = f"did you mean {close[0]}?" if close else advice
            message = message.replace(
                "unrecognized arguments", "unknown " + ("option" if found[:1] == "-" else "argument")
            )
        raise UserError(f"{message.replace('argument ', '', 1)}; {advice}")


def _add(group: Any, flag: Flag, doc: str, hidden: bool = False) -> None:
    without = flag.required or flag.default is None or flag.default == () or flag.hint is bool
    default = "" if without else f" (default: {flag.default})"
    text = " ".join(doc.split()).replace("%", "%%") + (" (required)" if flag.required else default)
    text = argparse.SUPPRESS if hidden else text.strip()
    if flag.hint is bool:
        action = argparse.BooleanOptionalAction if flag.default is None else "store_true"
        group.add_argument(flag.name, action=action, help=text)
        return
    options: dict[str, Any] = {"help": text, "metavar": _METAVARS.get(flag.hint, "TEXT")}
    if typing.get_origin(flag.hint) is Literal:
        options.update(choices=typing.get_args(flag.hint), metavar=None)
    else:
        options["type"] = _READERS.get(flag.hint, flag.hint)
    if flag.several:
        options.update(nargs="*", action="extend") if flag.repeats else options.update(nargs="+")
    if flag.positional:
        options["metavar"] = flag.name.upper()
        if not flag.required and not flag.several:
            options["nargs"] = "?"
    elif flag.required:
        options["required"] = True
    group.add_argument(flag.name, **options)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:100]!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:100]!r} is not a number") from None


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("it is empty; expected the name of a file")  # Path("") is the current folder
    return Path(text)


_READERS = {int: _whole, float: _number, Path: _path}
_METAVARS = {int: "N", float: "NUMBER", Path: "FILE"}


def _built(
    options: type[Options], flags: Sequence[Flag], values: dict[str, Any], path: tuple[str, ...] = ()
) -> Options:
    """Build a dataclass and its nested dataclasses from the given values."""
    inner = {
        flag.path[len(path)] for flag in flags if flag.path[: len(path)] == path and len(flag.path) > len(path) + 1
    }
    own = {flag.path[-1]: flag for flag in flags if flag.path[:-1] == path}
    chosen: dict[str, Any] = {}
    for name, flag in own.items():
        if name in values:
            chosen[name] = tuple(values[name]) if flag.several else values[name]
    hints = typing.get_type_hints(options)
    chosen.update({name: _built(hints[name], flags, values, (*path, name)) for name in inner})
    return options(**chosen)


def field_docs(owner: type) -> dict[str, str]:
    """The docstrings below the fields of a dataclass and its base classes."""
    found: dict[str, str] = {}
    for each in reversed(owner.__mro__):
        if dataclasses.is_dataclass(each):
            try:
                [body] = ast.parse(textwrap.dedent(inspect.getsource(each))).body
            except OSError:  # without sources, the help is shorter
                continue
            assert isinstance(body, ast.ClassDef)
            for field, doc in zip(body.body, body.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    text = doc.value if isinstance(doc, ast.Expr) else None
                    found[field.target.id] = str(text.value) if isinstance(text, ast.Constant) else ""
    return found


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs in ("*", "+"):
            return f"{action.metavar} ..."
        return super()._format_args(action, default_metavar)


def expect_usable(values: dict[str, Any], options: Mapping[str, str] = MappingProxyType({})) -> None:
    """Refuse values that make no sense for any option.

    Args:
        values: given values, by field name.
        options: names on the command line, for fields whose option has a different name.

    Raises:
        UserError: an empty text, a non-finite number, or one that does not fit a table.
    """
    for name, value in values.items():
        for each in value if isinstance(value, list | tuple) else (value,):
            option = options.get(name, option_of(name))
            if isinstance(each, str | PurePath) and not str(each).strip():
                raise UserError(f"{option} is empty; expected a value, or omit the option")
            if isinstance(each, float) and not math.isfinite(each):
                raise UserError(f"{option} is {each}; expected a finite number")
            if isinstance(each, float) and abs(each) > 1e15:
                raise UserError(f"{option} is {each:g}; expected a number of at most 15 digits")
            if isinstance(each, int) and abs(each) > _MOST:
                raise UserError(f"{option} is a number of {len(str(abs(each)))} digits; expected at most 18")
