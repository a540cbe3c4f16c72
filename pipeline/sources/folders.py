"""Folders of images as a source. A unit is a list of files, which a job makes once and keeps in its output.

out/_files/<hash>.jsonl    the unit and its folder, then a line for each file: path, key, path of the caption

So a unit never changes, even if files are added to the folder or removed from it.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import fsspec

from pipeline.errors import OutputError
from pipeline.folder import OutputFolder
from pipeline.sources.ahead import ahead
from pipeline.sources.base import Item, Unit, UnitError
from pipeline.sources.encoded_text import decoded, field_of
from pipeline.sources.group_fields import field_beside
from pipeline.sources.image_files import NotReadError, Reach, read_file
from pipeline.sources.member_names import KeySplit, MemberNames
from pipeline.sources.stores import listing_options, unreadable
from pipeline.sources.table_rows import BadValue
from pipeline.urls import is_local, public_url

MAX_CAPTION_BYTES = 2**20
MAX_JSON_BYTES = 16 * 2**20
_THREADS = 8  # threads that read files in advance
_LISTS = "_files"


@dataclasses.dataclass(frozen=True)
class ListedImage:
    """One image of a folder."""

    path: str
    """relative to the folder, as in the file system"""
    key: str
    caption: str | None = None
    """path of the file with its caption"""


@dataclasses.dataclass(frozen=True)
class ImageList:
    """The files of a unit."""

    unit: str
    """its public URL"""
    stem: str
    number: int
    """number of the unit in this folder"""
    root: str
    """the folder"""
    images: tuple[ListedImage, ...] = dataclasses.field(repr=False)

    @property
    def name(self) -> str:
        """The name of its file in an output."""
        return list_name(self.unit)

    def written(self) -> bytes:
        """The list as JSON lines; names that are not UTF-8 are escaped."""
        head = {"unit": self.unit, "stem": self.stem, "number": self.number, "root": self.root}
        lines = [head, *({k: v for k, v in dataclasses.asdict(one).items() if v is not None} for one in self.images)]
        return "".join(json.dumps(line) + "\n" for line in lines).encode()

    @classmethod
    def read(cls, data: bytes) -> "ImageList":
        """Parse the result of `written`.

        Raises:
            ValueError: it is damaged.
        """
        try:
            head, *lines = [json.loads(line) for line in data.splitlines()]
            return cls(**head, images=tuple(ListedImage(**line) for line in lines))
        except TypeError as error:
            raise ValueError(str(error)) from error


def list_name(unit: str) -> str:
    """The name of a unit's list in an output folder."""
    return f"{_LISTS}/{hashlib.sha256(unit.encode(errors='surrogateescape')).hexdigest()[:24]}.jsonl"


def recorded_lists(output: OutputFolder) -> list[ImageList]:
    """The lists written by earlier runs, ordered by number.

    Raises:
        UserError: they cannot be read.
    """
    names = sorted(output.names(_LISTS, ".jsonl"))
    with output.reading(_LISTS):
        found = [ImageList.read(output.fs.cat_file(output.at(f"{_LISTS}/{name}.jsonl"))) for name in names]
    return sorted(found, key=lambda one: (one.root, one.number))


def record(lists: Sequence[ImageList], output: OutputFolder) -> None:
    """Write lists that do not exist yet, before any work.

    Raises:
        OutputError: another run has listed the same folder and found different files.
    """
    for one in lists:
        try:
            output.put(one.name, one.written(), if_absent=True)
        except FileExistsError:
            if output.fs.cat_file(output.at(one.name)) != one.written():
                raise OutputError(
                    f"another run has listed {one.root} for {output.url} and found different files"
                ) from None


def listed_units(units: Sequence[Unit], output: OutputFolder) -> list[Unit]:
    """Units of an output, those with a list opened by it."""
    names: Collection[str] = output.names(_LISTS, ".jsonl")
    with_list = [f"{_LISTS}/{name}.jsonl" for name in names]
    return [with_list_of(unit, output) if list_name(unit.url) in with_list else unit for unit in units]


def with_list_of(unit: Unit, output: OutputFolder) -> Unit:
    """The unit, opened by its list in an output."""
    path = output.at(list_name(unit.url))
    return dataclasses.replace(unit, source=path if output.local else output.fs.unstrip_protocol(path))


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Images in nested folders, each with its caption beside it.

    Args:
        image_key, caption_key, key_split: see MemberNames.
        group_field: field of the JSON file beside an image that becomes `Item.field`.

    A key is the path relative to the folder, without its extension; the extension is kept if the key would not be unique.
    """

    image_key: str | None = None
    caption_key: str | None = None
    key_split: KeySplit = "last"
    group_field: str | None = None

    nouns = ("image", "files like 0001.jpg")
    columns = ()

    def read(self, unit: Unit, left_out: Counter[str] | None = None) -> Iterator[Item]:
        """Read the files of a list, see Source. All have an item, even if they are gone.

        Raises:
            UnitError: the list or the folder is missing, or many files in a row cannot be reached.
        """
        yield from self._read(unit, Counter() if left_out is None else left_out)

    def read_keys(self, unit: Unit, keys: Collection[str]) -> Iterator[Item]:
        """The items of some keys; only their files are read. Raises as `read` does."""
        yield from self._read(unit, Counter(), keys)

    def _read(self, unit: Unit, left_out: Counter[str], keys: Collection[str] | None = None) -> Iterator[Item]:
        found = self._list(unit)
        if is_local(found.root) and not os.path.isdir(found.root):
            raise UnitError(f"cannot read {unit.url}: there is no folder {found.root} on this machine")
        names = MemberNames(self.image_key, self.caption_key, self.key_split)
        reach = Reach(unit)

        def loaded(one: tuple[int, ListedImage]) -> tuple[Item, NotReadError | None, str | None]:
            item, error, lost = _item(*one, found.root, names)
            if self.group_field is not None:
                try:
                    field = field_beside(url_below(found.root, one[1].path), names, self.group_field)
                except NotReadError as problem:
                    field = BadValue(f"the JSON beside it cannot be read: {problem}")
                    error = error or (problem if problem.unreached else None)
                item = dataclasses.replace(item, field=field)
            return item, error, lost

        wanted = ((index, one) for index, one in enumerate(found.images) if keys is None or one.key in keys)
        for item, error, lost in ahead(wanted, loaded, _THREADS, 2 * _THREADS):
            reach.see(error)
            if lost is not None:
                left_out[lost] += 1
            yield item

    def urls(self, unit: Unit) -> dict[str, str]:
        """The path or URL of each file, by key. Raises as `read` does."""
        found = self._list(unit)
        return {one.key: url_below(found.root, one.path) for one in found.images}

    def size(self, unit: Unit) -> int | None:
        """Number of files in the list."""
        with contextlib.suppress(UnitError):  # `read` reports the problem
            return len(self._list(unit).images)
        return None

    def describe(self) -> dict[str, Any]:
        """See Source."""
        values = {"image_key": self.image_key, "caption_key": self.caption_key, "key_split": self.key_split}
        return {"kind": "folder", **{name: value for name, value in values.items() if value not in (None, "last")}}

    def _list(self, unit: Unit) -> ImageList:
        try:
            fs, path = fsspec.core.url_to_fs(unit.source, **listing_options(unit.source))
            data = fs.cat_file(path)
        except Exception as error:  # each filesystem has its own errors
            raise unreadable(unit.source, f"the list of files of {unit.url}", error) from error
        try:
            return ImageList.read(data)
        except ValueError as error:
            raise UnitError(f"the list of files of {unit.url} is damaged: {error}", permanent=True) from error


def url_below(root: str, path: str) -> str:
    """The path or URL of a file in a folder."""
    return f"{root.rstrip('/')}/{path}"


def unit_url(root: str, number: int) -> str:
    """The public URL of a unit of a folder, such as `/data/photos#00002`."""
    return f"{public_url(root).rstrip('/')}#{number:05d}"


def _item(index: int, one: ListedImage, root: str, names: MemberNames) -> tuple[Item, NotReadError | None, str | None]:
    """(item, why its file was not read, why its caption was not read)."""
    caption, lost = _caption(one.caption, root, names) if one.caption is not None else (None, None)
    bare = Item(index, one.key, caption=caption, size=1)
    try:
        return dataclasses.replace(bare, image=read_file(url_below(root, one.path))), None, lost
    except NotReadError as error:
        return dataclasses.replace(bare, status="bad_image", reason=str(error)), error, lost


def _caption(path: str, root: str, names: MemberNames) -> tuple[str | None, str | None]:
    """(text, None) of a file, or (None, why there is none)."""
    field = names.caption_field(names.split(path)[1])
    limit = MAX_CAPTION_BYTES if field is None else MAX_JSON_BYTES
    try:
        data = read_file(url_below(root, path), limit)
        text = decoded(data) if field is None else field_of(data, field)
    except NotReadError as error:
        return None, "empty captions" if "empty" in str(error) else "captions that cannot be read"
    except ValueError:
        return None, "captions that are not JSON"
    if text is None:
        return None, f"captions without a text called {field!r}"
    if len(text) > MAX_CAPTION_BYTES:
        return None, f"captions of more than {MAX_CAPTION_BYTES} bytes"
    return text.strip(), None
