"""The field of an image's JSON by which a job groups images."""

from collections.abc import Callable

from pipeline.sources.encoded_text import value_of, without_half_characters
from pipeline.sources.image_files import read_file
from pipeline.sources.member_names import MemberNames
from pipeline.sources.table_rows import BadValue

MAX_JSON_BYTES = 16 * 2**20


def read_field(field: str, size: int, read: Callable[[], bytes]) -> object:
    """The value of a field of a JSON member; BadValue if the JSON cannot be read.

    Args:
        size: of the member in bytes.
        read: reads it.
    """
    if size > MAX_JSON_BYTES:
        return BadValue(f"its JSON has {size} bytes; expected at most {MAX_JSON_BYTES}")
    return _value(field, read())


def field_beside(url: str, names: MemberNames, field: str) -> object:
    """The value of a field of the JSON file beside an image file.

    Args:
        url: path or URL of the image; the JSON file has the same name with the extension json.

    Raises:
        NotReadError: the JSON file cannot be read.
    """
    folder, slash, base = url.rpartition("/")
    extension = names.split(base)[1]
    name = base[: -len(extension) - 1] if extension else base
    return _value(field, read_file(f"{folder}{slash}{name}.json", MAX_JSON_BYTES))


def _value(field: str, data: bytes) -> object:
    try:
        value = value_of(data, field)
    except ValueError:
        return BadValue("its JSON is not valid")
    return without_half_characters(value) if isinstance(value, str) else value
