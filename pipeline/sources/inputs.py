"""What to read: what a user typed, to a list of shards.

Braces, globs, folders, lists and single addresses; local, or of any store that fsspec opens. Nothing that a job wrote is
ever input again.
"""

import codecs
import glob
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import braceexpand
import fsspec

from pez.errors import UserError
from pipeline.addresses import SHARD_EXTENSIONS, is_local, public_address, redact
from pipeline.sources.shards import Shard, listing_options, missing_driver, name_shards

_BELOW_OUTPUT = "below the output of a job"
_WITH_HOST = ("ftp", "sftp", "ssh", "smb", "webhdfs", "hdfs")
_OTHER_FILES = "files that are no .tar, .tar.gz or .tgz"


def expand_shards(
    patterns: Sequence[str], output: str | None = None, left_out: Counter[str] | None = None
) -> list[Shard]:
    """Expand what a user typed into shards.

    Args:
        patterns: addresses with braces (`{00000..00999}`) or globs (`*`, `?`, `[..]`, `**`), folders (their .tar, .tar.gz and
            .tgz files), or `@file` with one pattern a line.
        output: folder of the job; nothing below it is input.
        left_out: counts, by reason, the files that a folder or a glob holds and that are not taken. Hidden names, and those
            that begin with `_`, are no input unless they are typed.

    Returns:
        shards in the order given, each file once, however often and however it is spelled.

    Raises:
        UserError: nothing matches, a local file is missing, a file lies in a job's output, or an address is of a kind that
            cannot be opened; one line.
    """
    left_out = Counter() if left_out is None else left_out
    outputs = _Outputs(output)
    found: dict[str, str] = {}  # source by public address
    for pattern in patterns:
        for source in _expand(pattern, outputs, left_out):
            found.setdefault(public_address(source), source)
    if not found:
        raise UserError("no input given; expected --input with the address of a tar, or --demo")
    return name_shards(list(found), list(found.values()))


class _Outputs:
    """Knows which folders jobs have written."""

    def __init__(self, output: str | None) -> None:
        self.output = None if output is None else public_address(output.rstrip("/"))
        self._known: dict[str, bool] = {}

    def of(self, source: str) -> str | None:
        """The output folder that an address lies in, or None. Of a store, only this job's is known."""
        url = public_address(source)
        if self.output is not None and url.startswith(self.output + "/"):
            return self.output
        folder = os.path.dirname(url) if is_local(url) else ""
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


def _expand(pattern: str, outputs: _Outputs, left_out: Counter[str]) -> list[str]:
    """Addresses to open, one or more."""
    if pattern.startswith("@"):
        return [source for line in _listed(pattern[1:]) for source in _expand(line, outputs, left_out)]
    if not pattern.strip():
        raise UserError("an empty input; expected the address of a tar, a folder or a glob")
    if is_local(pattern) and os.path.exists(_local(pattern)):
        return _one(_local(pattern), pattern, outputs, left_out)
    try:
        braced = list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise UserError(f"cannot expand the braces of {redact(pattern)!r}: {redact(_one_line(error))}") from error
    return [source for one in braced for source in _one(one, pattern, outputs, left_out)]


def _one(address: str, typed: str, outputs: _Outputs, left_out: Counter[str]) -> list[str]:
    """Addresses behind one without braces."""
    _check_protocol(address)
    shown = redact(typed)
    if is_local(address):
        path = _local(address)
        if not os.path.exists(path) and glob.has_magic(path):
            names = (name for name in _matches(path) if os.path.isfile(name))
            return _chosen(names, path, shown, outputs, left_out)
        if os.path.isdir(path):
            entries = (entry.path for entry in os.scandir(path) if entry.is_file())
            return _chosen(entries, path + "/", shown, outputs, left_out)
        if not os.path.exists(path):
            raise UserError(f"no file {path}; expected a tar")
    elif "::" not in address and not address.lower().startswith(("http://", "https://")):
        is_glob, is_shard = glob.has_magic(address), address.lower().endswith(SHARD_EXTENSIONS)
        if is_glob or not is_shard:
            listed = _listed_by_store(address, is_glob)
            if listed is not None:
                base = address if is_glob else address.rstrip("/") + "/"
                return _chosen(listed, base, shown, outputs, left_out)
    elif address.endswith("/"):
        raise UserError(f"{shown!r} is a folder of a web server, which cannot be listed; name its tars, with braces")
    if folder := outputs.of(address):
        raise UserError(f"{shown!r} lies in {folder}, the output of a job; expected input outside of it")
    return [_local(address) if is_local(address) else address]


def _matches(pattern: str) -> Iterator[str]:
    """What a local glob matches. `**` enters linked folders as others, each folder once, however many links lead in circles."""
    before, stars, after = f"{pattern}/".partition("/**/")
    if not stars:
        yield from glob.iglob(pattern)
        return
    for base in glob.iglob(before or "/"):
        for folder in _folders(base, set()):
            yield from _matches(os.path.join(glob.escape(folder), after.rstrip("/") or "*"))


def _folders(folder: str, seen: set[str]) -> Iterator[str]:
    """A folder and those below it, but for hidden ones."""
    real = os.path.realpath(folder)
    if real in seen or not os.path.isdir(folder):
        return
    seen.add(real)
    yield folder
    try:
        below = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] not in "._")
    except OSError:  # as globs do, where a folder cannot be read
        return
    for one in below:
        yield from _folders(one, seen)


def _chosen(names: Iterable[str], pattern: str, shown: str, outputs: _Outputs, left_out: Counter[str]) -> list[str]:
    """Of the files that a folder holds or a glob matches, those that are input, in order."""
    typed = set(pattern.split("/"))
    asked = [part for part in typed if part.startswith((".", "_"))]  # like _part-*.tar

    def hidden(part: str) -> bool:
        return part.startswith((".", "_")) and part not in typed and not any(fnmatchcase(part, one) for one in asked)

    visible = [name for name in names if not any(hidden(part) for part in name.split("/"))]
    ours = [name for name in visible if outputs.of(name)]
    others = sorted(set(visible) - set(ours))
    tars = [name for name in others if name.lower().endswith(SHARD_EXTENSIONS)]
    taken = tars or ([] if pattern.endswith("/") else others)  # a glob may name shards without an extension
    if ours:
        left_out[_BELOW_OUTPUT] += len(ours)
    if len(taken) < len(others):
        left_out[_OTHER_FILES] += len(others) - len(taken)
    if taken:
        return taken
    if ours:
        folder = outputs.of(ours[0])
        raise UserError(f"{shown!r} matches files in {folder} alone, the output of a job; expected input outside of it")
    if others:
        kinds = Counter(os.path.splitext(name)[1].lower() or "no extension" for name in others)
        kind, count = kinds.most_common(1)[0]
        advice = f"pack them: tar cf shard.tar {shown}" if is_local(shown) else "pack them as tars"
        raise UserError(f"no tar in {shown!r}: found {count} x {kind}; expected .tar, .tar.gz or .tgz ({advice})")
    raise UserError(f"no shard matches {shown!r}; check the path and the quotes around * and {{}}")


def _listed_by_store(address: str, is_glob: bool) -> list[str] | None:
    """Files of a store that a glob matches or a folder holds; None where the address is no folder."""
    try:
        fs, path = fsspec.core.url_to_fs(address, **listing_options(address))
        if is_glob:
            entries: list[dict[str, Any]] = list(fs.glob(path, detail=True).values())
        elif not address.endswith("/") and not fs.isdir(path):
            return None
        else:
            entries = fs.ls(path.rstrip("/"), detail=True)
    except FileNotFoundError:
        entries = []
    except Exception as error:  # each filesystem has its own errors
        raise UserError(f"cannot list {redact(address)!r}: {redact(_one_line(error), address)}") from error
    names = [entry["name"] for entry in entries if entry["type"] == "file"]
    protocol, _, rest = address.partition("://")
    if protocol.lower() in _WITH_HOST:  # their names are paths alone
        return [f"{protocol}://{rest.split('/', 1)[0]}/{name.lstrip('/')}" for name in names]
    return [fs.unstrip_protocol(name) for name in names]


def _check_protocol(address: str) -> None:
    if address.startswith("pipe:"):
        raise UserError(
            f"{address!r} would run a shell command; give an address that fsspec opens, like s3:// or http://"
        )
    protocol = address.split("://", 1)[0].split("::")[-1].lower() if "://" in address else "file"
    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError as error:
        raise UserError(f"{redact(address)!r}: {protocol}:// is not a kind of address that fsspec knows") from error
    except ImportError as error:
        raise UserError(missing_driver(address, error)) from error


def _listed(file: str) -> list[str]:
    """The patterns of a list, one a line; # begins a comment."""
    shown = redact(file)
    try:
        with fsspec.open(_local(file) if is_local(file) else file, "rb") as opened:
            text = _decoded(opened.read())
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read the list of shards {shown}: it is not UTF-8; save it as UTF-8") from error
    except ImportError as error:
        raise UserError(missing_driver(file, error)) from error
    except Exception as error:  # each filesystem has its own errors
        reason = getattr(error, "strerror", None) or redact(_one_line(error), file)
        raise UserError(f"cannot read the list of shards {shown}: {reason}") from error
    lines = [line.strip() for line in text.splitlines()]
    patterns = [line for line in lines if line and not line.startswith("#")]
    nested = next((p for p in patterns if p.startswith("@")), None)
    if nested:
        raise UserError(f"{shown} names another list, {nested!r}; expected addresses of shards")
    if not patterns:
        raise UserError(f"the list of shards {shown} is empty; expected one address a line")
    return patterns


def _decoded(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    if b"\0" in data[:64]:  # UTF-16 without a mark, as some Windows programs write it
        return data.decode("utf-16-le" if data[1:2] == b"\0" else "utf-16-be")
    return data.decode("utf-8-sig")


def _local(address: str) -> str:
    """The absolute path of a local address, with its links as they are."""
    path = address.split("://", 1)[1] if "://" in address else address
    absolute = os.path.abspath(os.path.expanduser(path))
    return absolute + "/" if path.endswith("/") and os.path.isdir(absolute) else absolute


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
