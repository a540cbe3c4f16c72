"""One tar to samples: every key once, each with an image or with the reason why there is none."""

import dataclasses
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pez.images import ImageError, decode_image
from pipeline.sources.caption_text import decoded, field_of
from pipeline.sources.member_names import KeySplit, MemberNames, shorter_keys, text_of_name
from pipeline.sources.shards import Shard
from pipeline.sources.tars import ShardError, open_tar

__all__ = ["ImageError", "LateCaption", "Sample", "ShardError", "decode_image", "read_samples", "reading_options"]

MAX_IMAGE_BYTES = 256 * 2**20
MAX_CAPTION_BYTES = 2**20
MAX_JSON_BYTES = 16 * 2**20
MAX_WAITING_BYTES = 128 * 2**20
"""of a shard's captions that are away from their images, together"""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One key of a shard, as found."""

    index: int
    """order of the keys in the shard; where members turn out to be of another key, some numbers are left out"""
    key: str
    image: bytes | None = dataclasses.field(repr=False)
    caption: str | None
    status: str = "ok"
    """ok, no_image or bad_image"""
    problem: str | None = None
    """why it is not ok"""


@dataclasses.dataclass(frozen=True)
class LateCaption(Sample):
    """No sample of its own: the caption of a key whose sample has gone before."""


@dataclasses.dataclass
class _Group:
    index: int
    image: bytes | None = None
    has_image: bool = False
    """one that can be read or not, also when it was emitted"""
    is_usual: bool = False
    caption: str | None = None
    has_caption: bool = False
    caption_bytes: int = 0
    problem: str | None = None
    emitted: bool = False
    has_link: bool = False
    others: list[str] = dataclasses.field(default_factory=list)

    def sample(self, key: str, expected: str) -> Sample:
        if self.problem is not None:
            return Sample(self.index, key, None, self.caption, "bad_image", self.problem)
        if self.image is None:
            found = ", ".join(dict.fromkeys(self.others[:4])) or "a caption"
            extension = f", which would be .{expected}" if expected else ""
            reason = f"no image of this key{extension}; found {found}"
            return Sample(self.index, key, None, self.caption, "no_image", reason)
        return Sample(self.index, key, self.image, self.caption)


def read_samples(
    shard: Shard,
    image_key: str | None = None,
    caption_key: str | None = None,
    left_out: Counter[str] | None = None,
    *,
    key_split: KeySplit = "last",
    allow_unfinished_tars: bool = False,
    late_captions: bool = False,
) -> Iterator[Sample]:
    """Stream a shard.

    Args:
        image_key, caption_key, key_split: see MemberNames.
        left_out: counts, by reason, the members that are in no sample although they could have been meant to be.
        allow_unfinished_tars: also read a tar that ends behind a whole member, without the zeros that end a tar.
        late_captions: yield those too; otherwise they are left out.

    Yields:
        one sample a key. A key is a member's name without its ending, `a/photo.1.jpg` is `a/photo.1` (with an ending of
        two parts given, that ending counts). It is a name only and never a path: `./a`, `../a` and `/a` are kept as they
        are. A key with neither image nor caption belongs to the image whose key it lengthens by dotted parts, as
        `photo.meta.json` and `photo.jpg`. Of several images or captions of a key the first is taken. A key that comes again
        adds its caption, if it had none, and nothing else once its image was seen. Links are not followed, and sparse files
        not read: their keys are samples without an image.

    Raises:
        ShardError: not readable, not a tar, damaged or cut short: what looks like the end of a tar is not always one.
    """
    reader = _Reader(MemberNames(image_key, caption_key, key_split), Counter() if left_out is None else left_out)
    with open_tar(shard.source, shard.url, allow_unfinished_tars) as tar:
        for member in tar:
            for sample in reader.take(member, tar):
                if late_captions or not isinstance(sample, LateCaption):
                    yield sample
                else:
                    reader.left_out["caption after its key was done"] += 1
    yield from reader.rest()


def reading_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a run's settings that say how its shards are read, for `read_samples`."""
    names = ("image_key", "caption_key", "key_split", "allow_unfinished_tars")
    return {name: settings[name] for name in names if name in settings}


class _Reader:
    """Takes one member after the other."""

    def __init__(self, names: MemberNames, left_out: Counter[str]) -> None:
        self.names, self.left_out = names, left_out
        self.groups: dict[str, _Group] = {}
        self.current: str | None = None
        self.waiting_bytes = 0

    def take(self, member: tarfile.TarInfo, tar: open_tar) -> Iterator[Sample]:
        if member.isdir():
            return
        key, ending = self.names.split(member.name)
        if key is None or not (member.isfile() or member.issym() or member.islnk()):
            self.left_out["hidden, without an ending, or not a file"] += 1
            return
        if self.names.is_of_webdataset(member.name, ending):
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
        elif self.names.is_image(ending):
            self._take_image(group, member, ending, tar)
        elif self.names.is_caption(ending):
            text = self._caption(group, member, ending, tar)
            if text is not None and not self._keep(group, text):
                self.left_out[f"captions away from their images, above {MAX_WAITING_BYTES} bytes together"] += 1
            elif text is not None and group.emitted:
                yield LateCaption(group.index, key, None, text)
        elif not group.emitted:
            group.others.append(ending or "a file without an ending")

    def rest(self) -> Iterator[Sample]:
        for key in self.groups:
            yield from self._emit(key)

    def _emit(self, key: str) -> Iterator[Sample]:
        group = self.groups[key]
        if not group.has_image and not group.has_caption and self.names.is_of_webdataset(f"{key}.", ""):
            self.left_out["about the shard, like __index__.json"] += 1  # its ending might have been a caption's
        elif not group.emitted and not self._is_beside_an_image(key, group):
            yield group.sample(key, self.names.expected)
            self.waiting_bytes -= group.caption_bytes
            group.emitted, group.image, group.caption, group.others = True, None, None, []

    def _is_beside_an_image(self, key: str, group: _Group) -> bool:
        if group.has_image or group.has_caption or group.has_link:
            return False
        shorter = (self.groups.get(one) for one in shorter_keys(key))
        return any(one is not None and one.has_image for one in shorter)

    def _take_image(self, group: _Group, member: tarfile.TarInfo, ending: str, tar: open_tar) -> None:
        usual = self.names.is_usual_image(ending)
        if group.emitted:
            self.left_out["of a key that was done"] += 1
            return
        if group.has_image:
            self.left_out["another image of its key"] += 1
            if group.is_usual or not usual:
                return
        group.has_image, group.is_usual, group.image, group.problem = True, usual, None, None
        if member.issparse():
            group.problem = "the image is stored as a sparse file; make the tar without --sparse"
        elif member.size > MAX_IMAGE_BYTES:
            group.problem = f"image of {member.size} bytes; expected at most {MAX_IMAGE_BYTES}"
        else:
            group.image = tar.read(member)

    def _caption(self, group: _Group, member: tarfile.TarInfo, ending: str, tar: open_tar) -> str | None:
        """The text of a member that may be the caption of its key."""
        field = self.names.caption_field(ending)
        if group.has_caption:
            if field is None:
                self.left_out["another caption of its key"] += 1
            return None
        limit = MAX_CAPTION_BYTES if field is None else MAX_JSON_BYTES
        if member.size > limit or member.issparse():
            self.left_out[f"{'caption' if field is None else ending} of more than {limit} bytes"] += 1
            group.others.append(ending)
            return None
        data = tar.read(member)
        if field is None:
            return decoded(data).strip()
        reason = f"{ending} without a text called {field!r}"
        try:
            text = field_of(data, field)
        except ValueError:
            text, reason = None, f"{ending} that cannot be read"
        if text is not None and len(text) > MAX_CAPTION_BYTES:
            text, reason = None, f"caption of more than {MAX_CAPTION_BYTES} bytes"
        if text is None:
            self.left_out[reason] += 1
            group.others.append(ending)
            return None
        return text.strip()

    def _keep(self, group: _Group, text: str) -> bool:
        """Keep a caption until its image's row is made, or the shard's rows are; False where there is no room."""
        size = len(text.encode())
        if self.waiting_bytes + size > MAX_WAITING_BYTES:
            return False
        self.waiting_bytes += size
        group.has_caption, group.caption_bytes = True, size
        group.caption = None if group.emitted else text
        return True
