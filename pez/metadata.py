"""Image metadata: the orientation is read, everything else is removed before decoding.

Decoders reject an entire image over metadata that is malformed or too large. No pixel depends on it, so it is removed first.
The orientation is one number in one of several places; if it cannot be read, there is none.
"""

import contextlib
import re
import struct
import zlib
from collections.abc import Iterator

UPRIGHT = 1

_MAX_TEXT = 2**20
"""bytes of compressed text to unpack at most when looking for an orientation"""
_ORIENTATION = 0x0112
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q"}
"""the TIFF types that writers use for an orientation"""
# The TIFF tags that determine pixels: sizes, offsets, number and color formats, and compression parameters.
_TIFF_TAGS = {
    *(256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339),
    *(347, *range(512, 522), 529, 530, 531, 532, 50674),
}


def without_metadata(data: bytes) -> tuple[bytes, int]:
    """Remove everything that does not determine pixels, and return the orientation.

    Args:
        data: an image in any format; formats other than JPEG, PNG, TIFF and AVIF are returned unchanged.

    Returns:
        bytes, and the orientation, 1 to 8 as in EXIF; 1 = upright or unspecified.
    """
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data.startswith(b"\x89PNG"):
        return _png(data)
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(data)
    if data[4:8] == b"ftyp":
        return _avif(data), UPRIGHT
    return data, UPRIGHT


def orientation_of(exif: object, xmp: object = None) -> int:
    """The orientation given by an EXIF block or, failing that, by an XMP packet.

    Args:
        exif: bytes, with or without a leading `Exif\\0\\0`; anything else is ignored.
        xmp: bytes or text.
    """
    if isinstance(exif, bytes):
        exif = exif[re.match(rb"(Exif\0\0)*", exif).end() :]  # type: ignore[union-attr]
        with contextlib.suppress(struct.error):
            for tag, entry, endian, _ in _directory(exif):
                if tag == _ORIENTATION and (found := _integer(entry, endian)) is not None and 1 <= found <= 8:
                    return found
    packet = xmp.encode("utf-8", "replace") if isinstance(xmp, str) else xmp
    if isinstance(packet, bytes) and (match := re.search(rb"""tiff:Orientation(?:=["']|>)([1-8])\b""", packet)):
        return int(match[1])
    return UPRIGHT


def _jpeg(data: bytes) -> tuple[bytes, int]:
    kept, exif, xmp = _Kept(data), b"", b""
    for marker, start, end in _segments(data):
        content = data[start + 4 : end]
        if marker == 0xE1 and content.startswith(b"Exif\0\0"):
            exif += content[6:] if exif else content
        elif marker == 0xE1 and content.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = content
        # Two application segments describe how colors are stored.
        needed = (marker == 0xE0 and content.startswith(b"JFIF\0") and len(content) >= 14) or (
            marker == 0xEE and content.startswith(b"Adobe") and len(content) >= 12
        )
        if (0xE0 <= marker <= 0xEF or marker == 0xFE) and not needed:
            kept.drop(start, end)
    return kept.data(), orientation_of(exif, xmp)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each segment before the pixels."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill
            position += 1
            continue
        if marker in (0xD9, 0xDA):  # end, or the pixels
            return
        if marker in (0x01, *range(0xD0, 0xD9)):
            position += 2
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        if end > len(data):
            return
        yield marker, position, end
        position = end


def _png(data: bytes) -> tuple[bytes, int]:
    kept, exif, xmp = _Kept(data), b"", b""
    position = 8
    while position + 12 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4]), data[position + 4 : position + 8]
        end = position + 12 + length
        if end > len(data) or not kind.isalpha():
            break
        if kind == b"eXIf":
            exif = data[position + 8 : end - 4]
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword = data[position + 8 : position + 8 + 80].split(b"\0")[0]
            if keyword in (b"Raw profile type exif", b"Raw profile type APP1") and not exif:  # of ImageMagick
                exif = _raw_profile(_text(kind, keyword, data[position + 8 : end - 4]))
            elif keyword == b"XML:com.adobe.xmp" and not xmp:
                xmp = _text(kind, keyword, data[position + 8 : end - 4])
        if kind[:1].islower() and kind != b"tRNS":  # ancillary chunks, including frames of an animation
            kept.drop(position, end)
        position = end
        if kind == b"IEND":
            kept.drop(end, len(data))
            break
    return kept.data(), orientation_of(exif, xmp)


def _text(kind: bytes, keyword: bytes, chunk: bytes) -> bytes:
    """The text of a chunk; for compressed text, only the beginning."""
    rest = chunk[len(keyword) + 1 :]
    compressed = kind == b"zTXt" or (kind == b"iTXt" and rest[:1] == b"\1")
    if kind == b"iTXt":
        rest = rest[2:].split(b"\0", 2)[-1]  # after flag, method, language and translated keyword
    elif kind == b"zTXt":
        rest = rest[1:]
    if not compressed:
        return rest
    try:
        return zlib.decompressobj().decompress(rest, _MAX_TEXT)
    except zlib.error:
        return b""


def _raw_profile(text: bytes) -> bytes:
    """Parse `exif`, its length and its bytes in hexadecimal, each on separate lines."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""


def _tiff(data: bytes) -> tuple[bytes, int]:
    """Keep only the needed tags of the first directory, and no other directory."""
    try:
        entries = list(_directory(data))
        offset, big = _first_directory(data)
    except struct.error:
        return data, UPRIGHT
    endian = _endian(data)
    orientation = next((_integer(entry, endian) for tag, entry, *_ in entries if tag == _ORIENTATION), None) or UPRIGHT
    left = [entry for tag, entry, *_ in entries if tag in _TIFF_TAGS]
    new = struct.pack(endian + ("Q" if big else "H"), len(left)) + b"".join(left) + bytes(8 if big else 4)
    edited = bytearray(data)
    edited[offset : offset + len(new)] = new  # never longer than the original
    return bytes(edited), orientation if 1 <= orientation <= 8 else UPRIGHT


def _directory(data: bytes) -> Iterator[tuple[int, bytes, str, bool]]:
    """(tag, entry, endian, is BigTIFF) for the first directory of a TIFF; an EXIF block is one, too."""
    endian = _endian(data)
    offset, big = _first_directory(data)
    count = struct.unpack_from(endian + ("Q" if big else "H"), data, offset)[0]
    position, size = offset + (8 if big else 2), 20 if big else 12
    for _ in range(min(count, 65536)):
        entry = data[position : position + size]
        yield struct.unpack_from(endian + "H", entry)[0], entry, endian, big
        position += size


def _first_directory(data: bytes) -> tuple[int, bool]:
    endian = _endian(data)
    big = struct.unpack_from(endian + "H", data, 2)[0] == 43
    return struct.unpack_from(endian + ("Q" if big else "I"), data, 8 if big else 4)[0], big


def _endian(data: bytes) -> str:
    if data[:2] not in (b"II", b"MM"):
        raise struct.error("not a TIFF")
    return "<" if data[:2] == b"II" else ">"


def _integer(entry: bytes, endian: str) -> int | None:
    """The first number stored in a directory entry."""
    kind = struct.unpack_from(endian + "H", entry, 2)[0]
    if kind not in _INTEGERS:
        return None
    value = struct.unpack_from(endian + _INTEGERS[kind], entry, len(entry) - (8 if len(entry) == 20 else 4))
    return int(value[0])


def _avif(data: bytes) -> bytes:
    """Rename the EXIF item: Pillow parses it, but AVIF never takes its orientation from it."""
    position = 0
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4])
        if data[position + 4 : position + 8] == b"meta":
            head, box = data[:position], data[position : position + size]
            box = re.sub(rb"(infe\x02.{7})Exif|(infe\x03.{9})Exif", rb"\1\2free", box, flags=re.DOTALL)
            return head + box + data[position + size :] if size >= 8 else data
        if size < 8:
            break
        position += size
    return data


class _Kept:
    """Bytes without the dropped ranges, joined at the end."""

    def __init__(self, data: bytes) -> None:
        self.whole, self.from_ = data, 0
        self.pieces: list[memoryview] = []

    def drop(self, start: int, end: int) -> None:
        if start < end:
            if start > self.from_:
                self.pieces.append(memoryview(self.whole)[self.from_ : start])
            self.from_ = end

    def data(self) -> bytes:
        return b"".join([*self.pieces, memoryview(self.whole)[self.from_ :]]) if self.from_ else self.whole
