"""The meaning of --input for images: tars, folders of images, or tables that contain or name images; one kind per job."""

import dataclasses
import glob
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import braceexpand

from pez.errors import UserError
from pez.images import kind_of
from pipeline.folder import OutputFolder
from pipeline.settings import CaptionSettings, InputKind
from pipeline.sources.base import Unit
from pipeline.sources.first_bytes import HEAD
from pipeline.sources.folder_listing import (
    Files,
    files_below,
    images_of,
    is_image_name,
    lists_of,
    urls_of,
    what_is_in,
)
from pipeline.sources.folders import ImageList, recorded_lists, with_list_of
from pipeline.sources.found import Found
from pipeline.sources.inputs import (
    TARS,
    Kind,
    check_protocol,
    expand_inputs,
    listed_by_store,
    listed_patterns,
    local_name,
    matches_of_glob,
)
from pipeline.sources.member_names import MemberNames
from pipeline.sources.table_columns import with_columns
from pipeline.terminal import count
from pipeline.urls import IMAGE_TABLE_EXTENSIONS, TAR_EXTENSIONS, is_local, public_url, redact

Settings = TypeVar("Settings", bound=CaptionSettings)

IMAGE_TABLES = Kind("table", IMAGE_TABLE_EXTENSIONS, TAR_EXTENSIONS, "tars are another kind of input", "write a table")
_KINDS: dict[InputKind, str] = {
    "tars": f"tars ({', '.join(TAR_EXTENSIONS)})",
    "folder": "folders of images",
    "table": f"tables that hold or name images ({', '.join(e for e in IMAGE_TABLE_EXTENSIONS if e[-3:] != '.gz')})",
}
_OF_TARS = ("allow_unfinished_tars",)
_OF_FOLDERS = ("images_per_unit",)
_OF_NAMES = ("image_key", "caption_key", "key_split")
_OF_TABLES = ("image_column", "url_column", "key_column", "caption_column")


def find_images(
    patterns: Sequence[str], output: OutputFolder | None, settings: Settings, left_out: Counter[str]
) -> Found:
    """Turn the --input patterns of a user into units.

    Args:
        output: of the job. Lists of earlier runs are kept, and nothing below it is input.
        left_out: counts the files that are not input, by reason.

    Raises:
        UserError: there is no input, it is of several or unknown kinds, or an option does not apply to it.
    """
    look = _Look(output, settings)
    asked = [one for pattern in patterns for one in look.at(pattern)]
    kinds: dict[InputKind, str] = {}
    for one in asked:
        kinds.setdefault(one.kind, one.shown)
    if len(kinds) > 1:
        found = ", ".join(f"{kind_name(kind)} ({shown})" for kind, shown in kinds.items())
        raise UserError(f"the input is of several kinds: {found}; expected one kind per job, or --input-kind")
    kind: InputKind = next(iter(kinds), "tars")
    _refuse_options_of_others(settings, kind)
    chosen = dataclasses.replace(settings, input_kind=None if kind == "tars" else kind)
    url = None if output is None else output.url
    if kind == "tars":
        return Found(expand_inputs(patterns, url, left_out), chosen)
    if kind == "table":
        units = expand_inputs([p for one in asked for p in one.patterns], url, left_out, IMAGE_TABLES)
        chosen = with_columns(chosen, units[0])
        return Found(units, chosen, notes=(_columns(chosen),))
    return _units_of_folders(asked, output, chosen, left_out)


def fresh_units(patterns: Sequence[str], description: Mapping[str, Any]) -> list[Unit]:
    """Units of an earlier run, as they are to be opened now.

    Args:
        description: of that run.
    """
    kind = IMAGE_TABLES if description["source"].get("kind") == "table" else TARS
    return expand_inputs(patterns, kind=kind)


def kind_name(kind: InputKind) -> str:
    """`folders of images`."""
    return _KINDS[kind].partition(" (")[0]


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What one pattern means."""

    kind: InputKind
    shown: str
    patterns: tuple[str, ...] = ()
    """patterns of tables"""
    files: Files | None = None
    """files of a folder"""
    whole: bool = True
    """the whole folder is meant, not single files"""


class _Look:
    """Finds out what patterns mean."""

    def __init__(self, output: OutputFolder | None, settings: CaptionSettings) -> None:
        self.output, self.wanted = output, settings.input_kind
        self.names = MemberNames(settings.image_key, settings.caption_key, settings.key_split)

    def at(self, pattern: str) -> list[_Asked]:
        """The meaning of a pattern. An unknown kind is treated as tars, whose errors say what was found."""
        if pattern.startswith("@"):
            return [asked for line in listed_patterns(pattern[1:]) for asked in self.at(line)]
        if is_local(pattern) and os.path.exists(local_name(pattern)):
            return [self._one(local_name(pattern), pattern)]
        try:
            return [self._one(one, pattern) for one in braceexpand.braceexpand(pattern)]
        except ValueError:
            return [_Asked("tars", redact(pattern))]

    def _one(self, url: str, typed: str) -> _Asked:
        shown = redact(typed)
        check_protocol(url)
        if self.wanted == "tars" or not url.strip():
            return _Asked("tars", shown)
        if is_local(url):
            path = local_name(url)
            if os.path.isdir(path):
                direct = [entry.path for entry in os.scandir(path) if entry.is_file()]
                return self._folder(path, direct, shown)
            if os.path.exists(path):
                return self._file(path, shown)
            return self._of(sorted(m for m in matches_of_glob(path) if os.path.isfile(m)), path, shown)
        if "::" in url or url.lower().startswith(("http://", "https://")):
            return self._file(url, shown)
        is_glob = glob.has_magic(url)
        if is_glob and url.lower().endswith(TAR_EXTENSIONS):  # not listed twice
            return _Asked("tars", shown)
        if not is_glob and self._by_name(url) is not None:
            return self._file(url, shown)
        listed = listed_by_store(url, is_glob)
        if listed is None:
            return self._file(url, shown)
        return self._of(listed, url, shown) if is_glob else self._folder(url.rstrip("/"), listed, shown)

    def _by_name(self, url: str) -> InputKind | None:
        name = (url if is_local(url) else urlsplit(url).path).lower()
        if name.endswith(TAR_EXTENSIONS):
            return "tars"
        if name.endswith(IMAGE_TABLE_EXTENSIONS):
            return "table"
        return "folder" if is_image_name(name) else None

    def _file(self, url: str, shown: str) -> _Asked:
        kind = self.wanted or self._by_name(url)
        if kind is None and is_local(url) and os.path.isfile(url):
            with open(url, "rb") as file:
                head = file.read(HEAD)
            kind = "table" if head[:4] == b"PAR1" else "folder" if kind_of(head) else None
        if kind == "folder" and url.lower().startswith(("http://", "https://")):
            raise UserError(f"{shown!r} is a single image on a web server; expected a table of URLs, with --url-column")
        if kind == "folder":
            root, _, name = public_url(url).rpartition("/")
            return _Asked("folder", shown, files=Files(root, [name], Counter()), whole=False)
        return _Asked(kind or "tars", shown, (url,))

    def _of(self, paths: Sequence[str], pattern: str, shown: str) -> _Asked:
        """The meaning of a glob that matches these files."""
        kind = self.wanted or self._kind(what_is_in(paths), shown)
        if kind != "folder":
            return _Asked(kind or "tars", shown, (pattern,))
        fixed = pattern[: next(i for i, c in enumerate(pattern) if c in "*?[")]
        root = public_url(fixed.rpartition("/")[0] or "/").rstrip("/")
        below = [path.removeprefix(fixed.rpartition("/")[0] + "/") for path in paths]
        visible = [path for path in below if not any(part.startswith(".") for part in path.split("/"))]
        return _Asked("folder", shown, files=Files(root, visible, Counter()), whole=False)

    def _folder(self, path: str, direct: Sequence[str], shown: str) -> _Asked:
        """The meaning of a folder that directly contains these files."""
        at_once = what_is_in(direct)
        if self.wanted is None and at_once["tars"]:
            return _Asked("tars", shown)
        files = files_below(public_url(path).rstrip("/"), None if self.output is None else self.output.url)
        kind = self.wanted or self._kind(what_is_in(files.paths), shown)
        if kind is None and images_of(files, self.names)[0]:
            kind = "folder"  # of images without extensions
        if kind == "table":
            nested = f"{glob.escape(path) if is_local(path) else path}/**/*"
            return _Asked(
                kind, shown, (path,) if at_once["tables"] else tuple(nested + e for e in self._extensions(files))
            )
        if kind is None and files.paths:
            raise UserError(_of_no_kind(files.paths, shown))
        return _Asked(kind or "tars", shown, files=files)

    def _extensions(self, files: Files) -> list[str]:
        return [e for e in IMAGE_TABLE_EXTENSIONS if any(path.lower().endswith(e) for path in files.paths)]

    def _kind(self, counts: Counter[str], shown: str) -> InputKind | None:
        if counts["images"] and (counts["tars"] or counts["parquet"]):
            other, name = ("tars", "tar") if counts["tars"] else ("table", "Parquet table")
            number = counts["tars"] or counts["parquet"]
            raise UserError(
                f"{shown!r} contains {count(counts['images'], 'image')} and {count(number, name)}; choose with "
                f"--input-kind folder or --input-kind {other}"
            )
        if counts["images"]:
            return "folder"
        return "table" if counts["tables"] and not counts["tars"] else None


def _of_no_kind(paths: Iterable[str], shown: str) -> str:
    kinds = Counter(os.path.splitext(path)[1].lower() or "no extension" for path in paths)
    found = ", ".join(f"{number} x {name}" for name, number in kinds.most_common(3))
    return f"no image, tar or table in {shown!r}: found {found}; expected {', '.join(_KINDS.values())}"


def _refuse_options_of_others(settings: CaptionSettings, kind: InputKind) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    others = {
        "tars": (*_OF_TABLES, *_OF_FOLDERS),
        "folder": (*_OF_TABLES, *_OF_TARS),
        "table": (*_OF_NAMES, *_OF_TARS, *_OF_FOLDERS),
    }[kind]
    given = ["--" + name.replace("_", "-") for name in others if getattr(settings, name) != defaults[name]]
    if given:
        raise UserError(f"{', '.join(given)} {'has' if len(given) == 1 else 'have'} no effect on {kind_name(kind)}")


def _columns(settings: CaptionSettings) -> str:
    names = {"images": settings.image_column, "images named": settings.url_column, "keys": settings.key_column}
    names["captions"] = settings.caption_column
    return "columns: " + ", ".join(f"{what} in {name!r}" for what, name in names.items() if name is not None)


def _units_of_folders(
    asked: Sequence[_Asked], output: OutputFolder | None, settings: Settings, left_out: Counter[str]
) -> Found:
    """The units listed by earlier runs, and new units of other files."""
    recorded = [] if output is None else recorded_lists(output)
    names = MemberNames(settings.image_key, settings.caption_key, settings.key_split)
    owner = {url: one.unit for one in recorded for url in urls_of([one])}
    wanted: dict[str, None] = {}
    new: list[ImageList] = []
    notes: list[str] = []
    for one in _merged(asked):
        assert one.files is not None, "of a folder"
        root, before = one.files.root, one.files.root.rstrip("/") + "/"
        ours = [each for each in (*recorded, *new) if each.root == root]
        taken = {url.removeprefix(before) for url in owner if url.startswith(before)}
        keys = {image.key for each in ours for image in each.images}
        images, lost = images_of(one.files, names, taken, keys)
        left_out.update(lost)
        if one.whole:
            wanted.update(dict.fromkeys(each.unit for each in ours))
        wanted.update(dict.fromkeys(owner[before + path] for path in one.files.paths if before + path in owner))
        first = max((each.number for each in ours), default=-1) + 1
        added = lists_of(root, images, settings.images_per_unit, first, _stem(root, (*recorded, *new)))
        if ours and added:
            notes.append(f"{root} has {count(len(images), 'new image')}, in {count(len(added), 'more unit')}")
        new += added
        wanted.update(dict.fromkeys(each.unit for each in added))
        owner |= {url: each.unit for each in added for url in urls_of([each])}
    if not wanted:
        shown = ", ".join(one.shown for one in asked)
        raise UserError(f"no image in {shown!r}; {_left_out(left_out)}expected files like 0001.jpg")
    stems = {each.unit: each.stem for each in (*recorded, *new)}
    units = [Unit(url, stems[url]) for url in wanted]
    if output is not None:
        units = [with_list_of(unit, output) for unit in units]
    return Found(units, settings, tuple(new), tuple(notes))


def _left_out(left_out: Counter[str]) -> str:
    return f"found {', '.join(f'{number} x {why}' for why, number in left_out.most_common(3))}; " if left_out else ""


def _merged(asked: Sequence[_Asked]) -> Iterator[_Asked]:
    """Merge files of one folder that were named individually into one list."""
    single: dict[str, _Asked] = {}
    for one in asked:
        assert one.files is not None, "of a folder"
        if one.whole:
            yield one
        elif (earlier := single.get(one.files.root)) is None:
            single[one.files.root] = one
        else:
            assert earlier.files is not None, "as above"
            paths = list(dict.fromkeys([*earlier.files.paths, *one.files.paths]))
            single[one.files.root] = dataclasses.replace(earlier, files=dataclasses.replace(earlier.files, paths=paths))
    yield from single.values()


def _stem(root: str, lists: Sequence[ImageList]) -> str:
    """The prefix of a folder's output files: the folder's name, with a hash if another folder has the same name."""
    for one in lists:
        if one.root == root:
            return one.stem.rpartition("-")[0]
    name = (root.rstrip("/").rpartition("/")[2].lstrip("._") or "images")[:80]
    if any(one.stem.rpartition("-")[0].lower() == name.lower() for one in lists):
        name += f"-{hashlib.sha256(root.encode(errors='surrogateescape')).hexdigest()[:8]}"
    return name
