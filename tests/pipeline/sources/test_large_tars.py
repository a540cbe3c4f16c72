"""Members of any size pass through small memory."""

import math
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
from items import items_of
from random_tars import END, PNG

from pipeline.sources.ahead import ahead
from pipeline.sources.base import Item, Unit
from pipeline.sources.tars import MAX_IMAGE_BYTES, TarSource


def header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def stream_of(path: Path, name: str, size: int) -> None:
    """A tar with one large member and one small, in small memory."""
    with path.open("wb") as file:
        file.write(header(name, size))
        file.seek(file.tell() + -(-size // 512) * 512)  # a hole reads as zeros
        file.write(header("small.png", len(PNG)) + PNG.ljust(512, b"\0") + END)


def peak_growth(read: Iterator[object]) -> int:
    before = peak = psutil.Process().memory_info().rss
    for _ in read:
        peak = max(peak, psutil.Process().memory_info().rss)
    return peak - before


def kept(items: Iterable[Item], found: list[Item]) -> Iterator[Item]:
    """The items, and a copy of each in `found`."""
    for item in items:
        found.append(item)
        yield item


def test_a_member_of_100_mb_is_read(tmp_path: Path) -> None:
    stream_of(tmp_path / "a.tar", "big.bmp", 100 * 10**6)
    found = items_of(str(tmp_path / "a.tar"))
    assert [(s.key, len(s.image or b"")) for s in found] == [("big", 100 * 10**6), ("small", len(PNG))]


def test_a_member_above_the_limit_is_a_row_and_is_not_held_in_memory(tmp_path: Path) -> None:
    size = MAX_IMAGE_BYTES + 1
    stream_of(tmp_path / "a.tar", "big.jpg", size)
    found: list[Item] = []
    grown = peak_growth(kept(TarSource().read(Unit(str(tmp_path / "a.tar"), "a")), found))
    assert [(s.key, s.status, s.reason) for s in found] == [
        ("big", "bad_image", f"image of {size} bytes; expected at most {MAX_IMAGE_BYTES}"),
        ("small", "ok", None),
    ]
    assert grown < 64 * 2**20


def test_a_compressed_bomb_is_walked_through_in_small_memory(tmp_path: Path) -> None:
    size, packer = 300 * 2**20, zlib.compressobj(9, zlib.DEFLATED, 31)
    with (tmp_path / "a.tar.gz").open("wb") as file:
        file.write(packer.compress(header("bomb.jpg", size)))
        for _ in range(size // 2**20):
            file.write(packer.compress(bytes(2**20)))
        file.write(packer.compress(header("b.jpg", 0) + END) + packer.flush())
    assert (tmp_path / "a.tar.gz").stat().st_size < 2**20
    found: list[Item] = []
    grown = peak_growth(kept(TarSource().read(Unit(str(tmp_path / "a.tar.gz"), "a")), found))
    assert [(s.key, s.status) for s in found] == [("bomb", "bad_image"), ("b", "ok")]
    assert grown < 64 * 2**20


def test_large_images_do_not_pile_up_before_they_are_decoded() -> None:
    read = Counter[str]()

    def items() -> Iterator[int]:
        for i in range(50):
            read["begun"] += 1
            yield i

    def work(item: int) -> int:
        read["most"] = max(read["most"], read["begun"] - read["done"])
        read["done"] += 1
        return item

    assert list(ahead(items(), work, threads=1, limit=math.inf)) == list(range(50))  # type: ignore[arg-type]
    assert read["most"] <= 4
