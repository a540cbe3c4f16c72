"""Tars of images as a source. Every key is one item, with an image or with the reason why there is none."""

import contextlib
import dataclasses
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pipeline.sources.base import Item, LateCaption, LateField, Unit
from pipeline.sources.encoded_text import decoded, field_of
from pipeline.sources.group_fields import read_field
from pipeline.sources.member_names import KeySplit, MemberNames, shorter_keys, text_of_name
from pipeline.sources.tar_stream import open_tar

MAX_IMAGE_BYTES = 256 * 2**20
MAX_CAPTION_BYTES = 2**20
MAX_JSON_BYTES = 16 * 2**20
MAX_WAITING_BYTES = 128 * 2**20
"""total size of the captions of a tar that are not next to their images"""
_OVERHEAD = 1536  # bytes of a tar for an image and its caption in addition to the image: headers and padding


@dataclasses.dataclass(frozen=True)
class TarSource:
    """WebDataset shards: tars of images, each with its caption beside it.

    Args:
        image_key, caption_key, key_split: see MemberNames.
        allow_unfinished_tars: also read a tar that ends after a complete member, without the final zeros.
        group_field: field of the JSON of a key that becomes `Item.field`; JSON is then never a caption.

    A key is the name of a member without its extension, such as `a/photo.1` for `a/photo.1.jpg` (given extensions of two
    parts are respected). It is never used as a path: `./a`, `../a` and `/a` are kept unchanged. A key with neither image nor
    caption belongs to the image whose key it extends by dotted parts, such as `photo.meta.json` to `photo.jpg`. Of several
    images or captions of a key, the first is used. A repeated key can add a missing caption, but nothing else after its
    image was read. Links are not followed and sparse files are not read; their keys are items without an image.
    """

    image_key: str | None = None
    caption_key: str | None = None
    key_split: KeySplit = "last"
    allow_unfinished_tars: bool = False
    group_field: str | None = None

    nouns = ("image", "members like 0001.jpg")
    columns = ()

    def read(self, unit: Unit, left_out: Counter[str] | None = None) -> Iterator[Item]:
        """Stream a tar, see Source.

        Raises:
            UnitError: not readable, not a tar, damaged or truncated; what looks like the end of a tar is not always one.
        """
        names = MemberNames(self.image_key, self.caption_key, self.key_split)
        reader = _Reader(names, Counter() if left_out is None else left_out, self.group_field)
        with open_tar(unit.source, unit.url, self.allow_unfinished_tars) as tar:
            for member in tar:
                yield from reader.take(member, tar)
        yield from reader.rest()

    def size(self, unit: Unit) -> int | None:
        """Bytes of a local uncompressed tar."""
        if "://" in unit.source or unit.source.lower().endswith(("gz", "bz2", "xz", "zst")):
            return None
        with contextlib.suppress(OSError):
            return os.stat(unit.source).st_size
        return None

    def describe(self) -> dict[str, Any]:
        """See Source. Rows do not depend on whether a tar is unfinished."""
        values = {"image_key": self.image_key, "caption_key": self.caption_key, "key_split": self.key_split}
        return {name: value for name, value in values.items() if value not in (None, "last")}


@dataclasses.dataclass
class _Group:
    index: int
    image: bytes | None = None
    has_image: bool = False
    """readable or not; stays true after the item was emitted"""
    is_usual: bool = False
    caption: str | None = None
    has_caption: bool = False
    caption_bytes: int = 0
    reason: str | None = None
    emitted: bool = False
    has_link: bool = False
    field: Any = None
    others: list[str] = dataclasses.field(default_factory=list)

    def item(self, key: str, expected: str) -> Item:
        bare = Item(self.index, key, caption=self.caption, size=_OVERHEAD, field=self.field)
        if self.reason is not None:
            return dataclasses.replace(bare, status="bad_image", reason=self.reason)
        if self.image is None:
            found = ", ".join(dict.fromkeys(self.others[:4])) or "a caption"
            extension = f", which would be .{expected}" if expected else ""
            reason = f"no image of this key{extension}; found {found}"
            return dataclasses.replace(bare, status="no_image", reason=reason)
        return dataclasses.replace(bare, image=self.image, size=_OVERHEAD + len(self.image))


class _Reader:
    """Groups the members of a tar into items."""

    def __init__(self, names: MemberNames, left_out: Counter[str], group_field: str | None = None) -> None:
        self.names, self.left_out, self.group_field = names, left_out, group_field
        self.groups: dict[str, _Group] = {}
        self.current: str | None = None
        self.waiting_bytes = 0

    def take(self, member: tarfile.TarInfo, tar: open_tar) -> Iterator[Item]:
        if member.isdir():
            return
        key, extension = self.names.split(member.name)
        if key is None or not (member.isfile() or member.issym() or member.islnk()):
            self.left_out["hidden, without an extension, or not a file"] += 1
            return
        if self.names.is_of_webdataset(member.name, extension):
            self.left_out["about the shard, like __index__.json"] += 1
            return
        if self.current is not None and key != self.current and self.groups[self.current].image is not None:
            yield from self._emit(self.current)
        self.current = key
        group = self.groups.setdefault(key, _Group(len(self.groups)))
        if not member.isfile():
            if group.emitted:
                self.left_out["of a key that was done"] += 1
            group.has_link = True
            group.others.append(f"a link to {text_of_name(member.linkname)[:200]}")
        elif self.names.is_image(extension):
            self._take_image(group, member, extension, tar)
        elif self.group_field is not None and extension == "json":
            group.field = read_field(self.group_field, member.size, lambda: tar.read(member))
            group.others.append(extension)
            if group.emitted:
                yield LateField(group.index, key, field=group.field)
        elif self.names.is_caption(extension):
            text = self._caption(group, member, extension, tar)
            if text is not None and not self._keep(group, text):
                self.left_out[f"captions away from their images, above {MAX_WAITING_BYTES} bytes together"] += 1
            elif text is not None and group.emitted:
                yield LateCaption(group.index, key, caption=text)
        elif not group.emitted:
            group.others.append(extension or "a file without an extension")

    def rest(self) -> Iterator[Item]:
        for key in self.groups:
            yield from self._emit(key)

    def _emit(self, key: str) -> Iterator[Item]:
        group = self.groups[key]
        if not group.has_image and not group.has_caption and self.names.is_of_webdataset(f"{key}.", ""):
            # not known before, because its extension might have been that of a caption
            self.left_out["about the shard, like __index__.json"] += 1
        elif not group.emitted and not self._is_beside_an_image(key, group):
            yield group.item(key, self.names.expected)
            self.waiting_bytes -= group.caption_bytes
            group.emitted, group.image, group.caption, group.others = True, None, None, []

    def _is_beside_an_image(self, key: str, group: _Group) -> bool:
        if group.has_image or group.has_caption or group.has_link:
            return False
        shorter = (self.groups.get(one) for one in shorter_keys(key))
        return any(one is not None and one.has_image for one in shorter)

    def _take_image(self, group: _Group, member: tarfile.TarInfo, extension: str, tar: open_tar) -> None:
        usual = self.names.is_usual_image(extension)
        if group.emitted:
            self.left_out["of a key that was done"] += 1
            return
        if group.has_image:
            self.left_out["another image of its key"] += 1
            if group.is_usual or not usual:
                return
        group.has_image, group.is_usual, group.image, group.reason = True, usual, None, None
        if member.issparse():
            group.reason = "the image is stored as a sparse file; make the tar without --sparse"
        elif member.size > MAX_IMAGE_BYTES:
            group.reason = f"image of {member.size} bytes; expected at most {MAX_IMAGE_BYTES}"
        else:
            group.image = tar.read(member)

    def _caption(self, group: _Group, member: tarfile.TarInfo, extension: str, tar: open_tar) -> str | None:
        """The text of a member, if it is the caption of its key."""
        field = self.names.caption_field(extension)
        if group.has_caption:
            if field is None:
                self.left_out["another caption of its key"] += 1
            return None
        limit = MAX_CAPTION_BYTES if field is None else MAX_JSON_BYTES
        if member.size > limit or member.issparse():
            self.left_out[f"{'caption' if field is None else extension} of more than {limit} bytes"] += 1
            group.others.append(extension)
            return None
        data = tar.read(member)
        if field is None:
            return decoded(data).strip()
        reason = f"{extension} without a text called {field!r}"
        try:
            text = field_of(data, field)
        except ValueError:
            text, reason = None, f"{extension} that cannot be read"
        if text is not None and len(text) > MAX_CAPTION_BYTES:
            text, reason = None, f"caption of more than {MAX_CAPTION_BYTES} bytes"
        if text is None:
            self.left_out[reason] += 1
            group.others.append(extension)
            return None
        return text.strip()

    def _keep(self, group: _Group, text: str) -> bool:
        """Keep a caption until the row of its image is complete; False if there is no room."""
        size = len(text.encode())
        if self.waiting_bytes + size > MAX_WAITING_BYTES:
            return False
        self.waiting_bytes += size
        group.has_caption, group.caption_bytes = True, size
        group.caption = None if group.emitted else text
        return True
