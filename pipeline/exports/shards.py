"""WebDataset shards: the members of each key, with the exported text as its .txt."""

import io
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import IO

from pipeline.exports.names import extension_of, path_of
from pipeline.sources.base import Item, Unit
from pipeline.sources.member_names import MemberNames, shorter_keys
from pipeline.sources.tar_stream import open_tar
from pipeline.sources.tars import TarSource

MAX_MEMBER_BYTES = 2**30

Sample = tuple[str, list[tuple[str, bytes]]]
"""a key, and the extension and content of each of its members"""


def write_samples(file: IO[bytes], samples: Iterable[Sample], texts: Mapping[str, str]) -> set[str]:
    """Write samples as a tar; a member `txt` is replaced by the exported text.

    Returns:
        the keys that were written.
    """
    written = set()
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for key, members in samples:
            name = path_of(key, dots=False)
            for extension, data in [*((e, d) for e, d in members if e != "txt"), ("txt", texts[key].encode())]:
                info = tarfile.TarInfo(f"{name}.{extension}")  # owner and time are the same for every run
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            written.add(key)
    return written


def samples_of_items(items: Iterable[Item]) -> Iterator[Sample]:
    """Samples of folders and tables: the image alone."""
    for item in items:
        if item.image is not None:
            yield item.key, [(extension_of(item.image), item.image)]


def samples_of_tar(
    unit: Unit, source: TarSource, keys: Mapping[str, object], left_out: Counter[str]
) -> Iterator[Sample]:
    """Samples of a tar, with all members of a key that are next to each other.

    Args:
        keys: those that are exported.
        left_out: counts the other members, by reason.

    Raises:
        UnitError: see `TarSource.read`.
    """
    names = MemberNames(source.image_key, source.caption_key, source.key_split)
    current: str | None = None
    members: list[tuple[str, bytes]] = []
    done: set[str] = set()

    def finished() -> Iterator[Sample]:
        if current is not None and any(names.is_image(extension) for extension, _ in members):
            done.add(current)
            yield current, members
        elif members:
            left_out["members: away from the image of their key"] += len(members)

    with open_tar(unit.source, unit.url, source.allow_unfinished_tars) as tar:
        for member in tar:
            if member.isdir():
                continue
            key, extension = names.split(member.name)
            if key is None or not member.isfile() or member.issparse():
                left_out["members: hidden, without an extension, or not a file"] += 1
                continue
            owner = next((k for k in (key, *shorter_keys(key)) if k in keys), None)
            if owner is None:
                continue  # its row is counted, or it is about the shard
            if owner in done:
                left_out["members: away from the image of their key"] += 1
                continue
            if owner != current:
                yield from finished()
                current, members = owner, []
            extension = f"{key[len(owner) + 1 :]}.{extension}" if owner != key else extension
            if any(extension == other for other, _ in members):
                left_out["members: repeated"] += 1
            elif member.size > MAX_MEMBER_BYTES:
                left_out[f"members: of more than {MAX_MEMBER_BYTES} bytes"] += 1
            else:
                members.append((extension, tar.read(member)))
        yield from finished()
