"""Bytes to the text in them: in the usual encodings, or a field of JSON."""

import codecs
import json

_BYTE_ORDER_MARKS = (  # the longer first: that of UTF-32 begins as that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decoded(data: bytes) -> str:
    """Text in the encoding that its bytes show, without the byte order mark."""
    return data.decode(encoding_of(data), errors="replace").removeprefix("\ufeff")


def encoding_of(data: bytes) -> str:
    """UTF-8, or as the byte order mark says, or UTF-16 where every second byte is zero or nearly so."""
    marked = next((encoding for mark, encoding in _BYTE_ORDER_MARKS if data.startswith(mark)), None)
    return marked or _utf16_without_mark(data) or "utf-8"


def without_half_characters(text: str) -> str:
    """A text in which halves of characters, which JSON can spell and no table takes, are replaced."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def field_of(data: bytes, field: str) -> str | None:
    """The text of a JSON object's field; None where it has no such text.

    Args:
        field: its name, or names joined by dots (`meta.caption`); a name that holds dots itself goes first, and a number is a
            place in a list. Of a list of texts the first counts.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        value = _at(json.loads(decoded(data)), field)
    except RecursionError as error:
        raise ValueError("JSON within JSON, too deep to read") from error
    if isinstance(value, list):
        value = next((v for v in value if isinstance(v, str)), None)
    if not isinstance(value, str):
        return None
    return without_half_characters(value)


def _at(value: object, field: str) -> object:
    if isinstance(value, dict) and field in value:
        return value[field]
    name, dot, rest = field.partition(".")
    if isinstance(value, list):
        inner = value[int(name)] if name.isdecimal() and int(name) < len(value) else None
    else:
        inner = value.get(name) if isinstance(value, dict) and dot else None
    return _at(inner, rest) if dot else inner


def _utf16_without_mark(data: bytes) -> str | None:
    even, odd = data[0::2], data[1::2]
    if len(data) < 2 or len(data) % 2:
        return None
    for encoding, zeros, others in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if 2 * zeros.count(0) > len(zeros) and 8 * others.count(0) < zeros.count(0):
            return encoding
    return None
