"""Expansion of the --input patterns of a user into units of work.

Braces, globs, folders, lists and single URLs; local, or in any store that fsspec opens. The files are of one kind: tars of
images, tables of images, or tables of texts.
"""

import codecs
import dataclasses
import glob
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

import braceexpand
import fsspec

from pez.errors import UserError
from pipeline.sources.base import Unit
from pipeline.sources.stores import listing_options, missing_driver, one_line
from pipeline.sources.units import name_units
from pipeline.urls import TABLE_EXTENSIONS, TAR_EXTENSIONS, TEXT_EXTENSIONS, is_local, public_url, redact

_BELOW_OUTPUT = "below the output of a job"
_WITH_HOST = ("ftp", "sftp", "ssh", "smb", "webhdfs", "hdfs")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of input files."""

    noun: str
    extensions: tuple[str, ...]
    other: tuple[str, ...]
    """extensions of files that another command reads"""
    other_command: str
    """the command that reads them"""
    advice: str
    """what to do with a folder of other files"""
    reads_outputs: bool = False
    """tables written by earlier jobs are input, too"""

    @property
    def expected(self) -> str:
        """`.tar, .tar.gz or .tgz`."""
        named = [end for end in self.extensions if end in TAR_EXTENSIONS or not end.endswith(".gz")]
        return f"{', '.join(named[:-1])} or {named[-1]}"

    def holds(self, url: str) -> bool:
        """Whether the name of a file is of this kind."""
        return url.lower().endswith(self.extensions)


TARS = Kind(
    "tar",
    TAR_EXTENSIONS,
    TABLE_EXTENSIONS,
    "a table of texts is read by: pez distill --input TABLE --column NAME --output OUT",
    "pack them: tar cf shard.tar FOLDER",
)
TABLES = Kind(
    "table",
    TEXT_EXTENSIONS,
    TAR_EXTENSIONS,
    "a tar of images is read by: pez caption --input TAR --output OUT",
    "write them as JSON lines, one object per line",
    reads_outputs=True,
)


def expand_inputs(
    patterns: Sequence[str], output: str | None = None, left_out: Counter[str] | None = None, kind: Kind = TARS
) -> list[Unit]:
    """Expand the patterns of a user into units.

    Args:
        patterns: URLs or paths with braces (`{00000..00999}`) or globs (`*`, `?`, `[..]`, `**`), folders (their files with
            the extensions of the kind), or `@file` with one pattern per line.
        output: folder of the job; nothing below it is input. Outputs of other jobs are not input either, except for tables
            of texts.
        left_out: counts the files in a folder or a glob that are not input, by reason. Names that begin with `.` or `_`
            are skipped unless they are typed.

    Returns:
        units in the given order, each file once, regardless of repetition and spelling.

    Raises:
        UserError: nothing matches, a local file is missing, a file is for another command or in the output, or the protocol
            of a URL is not supported.
    """
    left_out = Counter() if left_out is None else left_out
    expansion = _Expansion(kind, _Outputs(output, kind.reads_outputs), left_out)
    found: dict[str, str] = {}  # source by public URL
    for pattern in patterns:
        for source in expansion.of(pattern):
            found.setdefault(public_url(source), source)
    if not found:
        raise UserError(f"no input given; expected --input with the URL of a {kind.noun}, or --demo")
    return name_units(list(found), list(found.values()))


class _Outputs:
    """Recognizes output folders of jobs.

    Args:
        output: of this job.
        own_only: ignore outputs of other jobs.
    """

    def __init__(self, output: str | None, own_only: bool) -> None:
        self.output = None if output is None else public_url(output.rstrip("/"))
        self.own_only = own_only
        self._known: dict[str, bool] = {}

    def of(self, source: str) -> str | None:
        """The output folder that contains a file, or None. In a store, only that of this job is recognized."""
        url = public_url(source)
        if self.output is not None and url.startswith(self.output + "/"):
            return self.output
        folder = os.path.dirname(url) if is_local(url) and not self.own_only else ""
        while folder and folder != os.path.dirname(folder):
            if self._is_output(folder):
                return folder
            folder = os.path.dirname(folder)
        return None

    def _is_output(self, folder: str) -> bool:
        if folder not in self._known:
            try:
                with open(os.path.join(folder, "_run.json"), encoding="utf-8") as file:
                    self._known[folder] = "fingerprint" in json.load(file)
            except (OSError, ValueError, TypeError):
                self._known[folder] = False
        return self._known[folder]


@dataclasses.dataclass(frozen=True)
class _Expansion:
    """Turns patterns into URLs to open."""

    kind: Kind
    outputs: _Outputs
    left_out: Counter[str]

    def of(self, pattern: str) -> list[str]:
        """The URLs to open for a pattern."""
        if pattern.startswith("@"):
            return [source for line in listed_patterns(pattern[1:]) for source in self.of(line)]
        if not pattern.strip():
            raise UserError(f"an empty input; expected the URL of a {self.kind.noun}, a folder or a glob")
        if is_local(pattern) and os.path.exists(local_name(pattern)):
            return self._one(local_name(pattern), pattern)
        try:
            braced = list(braceexpand.braceexpand(pattern))
        except ValueError as error:
            raise UserError(f"cannot expand the braces of {redact(pattern)!r}: {redact(one_line(error))}") from error
        return [source for one in braced for source in self._one(one, pattern)]

    def _one(self, url: str, typed: str) -> list[str]:
        """The URLs to open for a pattern without braces."""
        check_protocol(url)
        shown = redact(typed)
        if is_local(url):
            path = local_name(url)
            if not os.path.exists(path) and glob.has_magic(path):
                names = (name for name in matches_of_glob(path) if os.path.isfile(name))
                return self._chosen(names, path, shown)
            if os.path.isdir(path):
                entries = (entry.path for entry in os.scandir(path) if entry.is_file())
                return self._chosen(entries, path + "/", shown)
            if not os.path.exists(path):
                raise UserError(f"no file {path}; expected a {self.kind.noun}")
        elif "::" not in url and not url.lower().startswith(("http://", "https://")):
            is_glob = glob.has_magic(url)
            if is_glob or not self.kind.holds(url):
                listed = listed_by_store(url, is_glob)
                if listed is not None:
                    return self._chosen(listed, url if is_glob else url.rstrip("/") + "/", shown)
        elif url.endswith("/"):
            raise UserError(
                f"{shown!r} is a folder on a web server, which cannot be listed; name its {self.kind.noun}s, with braces"
            )
        if folder := self.outputs.of(url):
            raise UserError(f"{shown!r} is in {folder}, the output of a job; expected input outside of it")
        self._expect_kind(url, shown)
        return [local_name(url) if is_local(url) else url]

    def _expect_kind(self, url: str, shown: str) -> None:
        """Raise UserError if another command reads files with this name."""
        name = (url if is_local(url) else urlsplit(url).path).lower()
        if name.endswith(self.kind.other):
            raise UserError(f"{shown!r} is not a {self.kind.noun} ({self.kind.expected}): {self.kind.other_command}")

    def _chosen(self, names: Iterable[str], pattern: str, shown: str) -> list[str]:
        """The input files among those of a folder or a glob, in order."""
        typed = set(pattern.split("/"))
        typed_hidden = [part for part in typed if part.startswith((".", "_"))]  # such as _part-*.tar

        def hidden(part: str) -> bool:
            if not part.startswith((".", "_")) or part in typed:
                return False
            return not any(fnmatchcase(part, one) for one in typed_hidden)

        visible = [name for name in names if not any(hidden(part) for part in name.split("/"))]
        ours = [name for name in visible if self.outputs.of(name)]
        others = sorted(set(visible) - set(ours))
        taken = [name for name in others if self.kind.holds(name)]
        if not taken and not pattern.endswith("/"):  # a glob may match files without an extension
            taken = [name for name in others if not name.lower().endswith(self.kind.other)]
        if ours:
            self.left_out[_BELOW_OUTPUT] += len(ours)
        if len(taken) < len(others):
            self.left_out[f"files that are not {self.kind.expected}"] += len(others) - len(taken)
        if taken:
            return taken
        if ours:
            folder = self.outputs.of(ours[0])
            raise UserError(
                f"{shown!r} matches only files in {folder}, the output of a job; expected input outside of it"
            )
        if others:
            raise UserError(self._none_of(others, shown))
        raise UserError(f"no {self.kind.noun} matches {shown!r}; check the path and the quotes around * and {{}}")

    def _none_of(self, names: Sequence[str], shown: str) -> str:
        kinds = Counter(_extension(name) or "no extension" for name in names)
        found, count = kinds.most_common(1)[0]
        advice = self.kind.other_command if found in self.kind.other else self.kind.advice.replace("FOLDER", shown)
        return f"no {self.kind.noun} in {shown!r}: found {count} x {found}; expected {self.kind.expected} ({advice})"


def _extension(name: str) -> str:
    return os.path.splitext(name.lower().removesuffix(".gz"))[1] + ".gz" * name.lower().endswith(".gz")


def matches_of_glob(pattern: str) -> Iterator[str]:
    """The matches of a local glob. `**` also enters linked folders, each folder once, so circular links are harmless."""
    before, stars, after = f"{pattern}/".partition("/**/")
    if not stars:
        yield from glob.iglob(pattern)
        return
    for base in glob.iglob(before or "/"):
        for folder in _folders(base, set()):
            yield from matches_of_glob(os.path.join(glob.escape(folder), after.rstrip("/") or "*"))


def _folders(folder: str, seen: set[str]) -> Iterator[str]:
    """A folder and those below it, except hidden ones."""
    real = os.path.realpath(folder)
    if real in seen or not os.path.isdir(folder):
        return
    seen.add(real)
    yield folder
    try:
        below = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] not in "._")
    except OSError:  # as globs do for unreadable folders
        return
    for one in below:
        yield from _folders(one, seen)


def listed_by_store(url: str, is_glob: bool) -> list[str] | None:
    """Files in a store that match a glob or are in a folder; None if the URL is not a folder."""
    try:
        fs, path = fsspec.core.url_to_fs(url, **listing_options(url))
        if is_glob:
            entries: list[dict[str, Any]] = list(fs.glob(path, detail=True).values())
        elif not url.endswith("/") and not fs.isdir(path):
            return None
        else:
            entries = fs.ls(path.rstrip("/"), detail=True)
    except FileNotFoundError:
        entries = []
    except Exception as error:  # each filesystem has its own errors
        raise UserError(f"cannot list {redact(url)!r}: {redact(one_line(error), url)}") from error
    names = [entry["name"] for entry in entries if entry["type"] == "file"]
    protocol, _, rest = url.partition("://")
    if protocol.lower() in _WITH_HOST:  # their names are paths without the host
        return [f"{protocol}://{rest.split('/', 1)[0]}/{name.lstrip('/')}" for name in names]
    return [fs.unstrip_protocol(name) for name in names]


def check_protocol(url: str) -> None:
    """Raise UserError if a URL may not be opened."""
    if url.startswith("pipe:"):
        raise UserError(
            f"{url!r} would run a shell command; expected a URL that fsspec opens, such as s3:// or http://"
        )
    protocol = url.split("://", 1)[0].split("::")[-1].lower() if "://" in url else "file"
    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError as error:
        raise UserError(f"{redact(url)!r}: {protocol}:// is not a protocol that fsspec knows") from error
    except ImportError as error:
        raise UserError(missing_driver(url, error)) from error


def listed_patterns(file: str) -> list[str]:
    """The patterns of a list, one per line; # begins a comment."""
    shown = redact(file)
    try:
        with fsspec.open(local_name(file) if is_local(file) else file, "rb") as opened:
            text = _decoded(opened.read())
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read the list of inputs {shown}: it is not UTF-8; save it as UTF-8") from error
    except ImportError as error:
        raise UserError(missing_driver(file, error)) from error
    except Exception as error:  # each filesystem has its own errors
        reason = getattr(error, "strerror", None) or redact(one_line(error), file)
        raise UserError(f"cannot read the list of inputs {shown}: {reason}") from error
    lines = [line.strip() for line in text.splitlines()]
    patterns = [line for line in lines if line and not line.startswith("#")]
    nested = next((p for p in patterns if p.startswith("@")), None)
    if nested:
        raise UserError(f"{shown} names another list, {nested!r}; expected URLs of files")
    if not patterns:
        raise UserError(f"the list of inputs {shown} is empty; expected one URL per line")
    return patterns


def _decoded(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    if b"\0" in data[:64]:  # UTF-16 without a mark, as some Windows programs write it
        return data.decode("utf-16-le" if data[1:2] == b"\0" else "utf-16-be")
    return data.decode("utf-8-sig")


def local_name(url: str) -> str:
    """The absolute path of a local file, without resolving links."""
    path = url.split("://", 1)[1] if "://" in url else url
    absolute = os.path.abspath(os.path.expanduser(path))
    return absolute + "/" if path.endswith("/") and os.path.isdir(absolute) else absolute
