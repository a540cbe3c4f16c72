"""Decoding of bytes to text: in the usual encodings, or from a field of JSON."""

import codecs
import json

_BYTE_ORDER_MARKS = (  # longer ones first, since the mark of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decoded(data: bytes) -> str:
    """Decode text in the detected encoding, without the byte order mark."""
    return data.decode(encoding_of(data), errors="replace").removeprefix("\ufeff")


def encoding_of(data: bytes) -> str:
    """The encoding of the byte order mark; or UTF-16 if nearly every second byte is zero; else UTF-8."""
    marked = next((encoding for mark, encoding in _BYTE_ORDER_MARKS if data.startswith(mark)), None)
    return marked or _utf16_without_mark(data) or "utf-8"


def without_half_characters(text: str) -> str:
    """Replace halves of characters (lone surrogates), which JSON can express but tables cannot store."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def field_of(data: bytes, field: str) -> str | None:
    """The text of a field of a JSON object; None if there is none.

    Args:
        field: its name, or names joined by dots (`meta.caption`). A name that contains dots itself takes precedence, and a
            number is an index into a list. Of a list of texts, the first is used.

    Raises:
        ValueError: it is not JSON.
    """
    value = value_of(data, field)
    if isinstance(value, list):
        value = next((v for v in value if isinstance(v, str)), None)
    if not isinstance(value, str):
        return None
    return without_half_characters(value)


def value_of(data: bytes, field: str) -> object:
    """The value of a field of a JSON object, named as for `field_of`; None if there is none.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return _at(json.loads(decoded(data)), field)
    except RecursionError as error:
        raise ValueError("JSON within JSON, too deep to read") from error


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
