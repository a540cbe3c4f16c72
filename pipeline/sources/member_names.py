"""From the name of a member to its key, and its role: image, caption or other."""

import dataclasses
import re
from typing import Literal

from pez.errors import UserError

KeySplit = Literal["last", "first"]

IMAGE_EXTENSIONS = (
    *("jpg", "jpeg", "jpe", "jif", "jfif", "jfi", "pjpeg", "pjpg", "pjp", "mpo"),
    *("png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff", "avif", "avifs"),
)
PLUGIN_EXTENSIONS = ("heic", "heif", "hif", "jxl")
"""of images that a plugin decodes; if a key also has a usual image, that one is used"""
CAPTION_EXTENSIONS = ("txt", "caption", "text")

OF_SYSTEMS = ("thumbs.db", "ehthumbs.db", "desktop.ini")  # hidden files of operating systems
_OF_WEBDATASET = re.compile(
    r"__[^/]*__($|/)|(.*/)?__[^/]*__\.[^/]*$", re.DOTALL
)  # names that it skips, and names such as __index__.json


@dataclasses.dataclass(frozen=True)
class MemberNames:
    """How to interpret names.

    Args:
        image_key: extensions of the members that are images, spelled as in WebDataset: "jpg", ".jpg", "jpg;png",
            "left.jpg"; None = any usual image extension.
        caption_key: the same for captions; "json:caption" is a field of a JSON member. None = txt, caption or text.
        key_split: the dot of the base name at which the key ends. With "last", given extensions of two parts are respected.

    Raises:
        UserError: a key without an extension.
    """

    image_key: str | None = None
    caption_key: str | None = None
    key_split: KeySplit = "last"

    def __post_init__(self) -> None:
        if self.key_split not in ("last", "first"):
            raise UserError(f"key_split is {self.key_split!r}; expected last or first")
        images = _extensions("image_key", self.image_key) or dict.fromkeys(IMAGE_EXTENSIONS)
        if field := next((f for f in images.values() if f), None):
            raise UserError(f"image_key is {self.image_key!r}; only captions can have a field, {field!r}")
        captions = _extensions("caption_key", self.caption_key) or dict.fromkeys(CAPTION_EXTENSIONS)
        object.__setattr__(self, "_images", images)
        object.__setattr__(self, "_captions", captions)
        named = sorted((e for e in (*images, *captions) if "." in e), key=len, reverse=True)
        object.__setattr__(self, "_of_parts", tuple(named))

    _images: dict[str, str | None] = dataclasses.field(init=False, repr=False, compare=False)
    _captions: dict[str, str | None] = dataclasses.field(init=False, repr=False, compare=False)
    _of_parts: tuple[str, ...] = dataclasses.field(init=False, repr=False, compare=False)

    def split(self, name: str) -> tuple[str | None, str]:
        """Split a name into key and lower-case extension. Hidden files and names without an extension have no key."""
        name = text_of_name(name)
        folder, slash, base = name.rpartition("/")
        if base.startswith(".") or "." not in base or base.lower() in OF_SYSTEMS:
            return None, ""
        if self.key_split == "first":
            stem, _, extension = base.partition(".")
            return folder + slash + stem, extension.lower()
        for extension in self._of_parts:
            if base.lower().endswith("." + extension):
                return name[: -len(extension) - 1], extension
        key, _, extension = name.rpartition(".")
        return key, extension.lower()

    def is_image(self, extension: str) -> bool:
        if extension in self._images:
            return True
        last = extension.rpartition(".")[2] if self.key_split == "first" else extension
        return self.image_key is None and (last in self._images or last in PLUGIN_EXTENSIONS)

    def is_usual_image(self, extension: str) -> bool:
        """Whether the extension is a known one itself, needs no plugin, and does not just end in one, as `mask.png` does."""
        return extension in self._images

    def is_caption(self, extension: str) -> bool:
        return extension in self._captions or (
            self.caption_key is None and self._last_part(extension) in self._captions
        )

    def caption_field(self, extension: str) -> str | None:
        """The field of a JSON member with the caption; None if the whole member is the caption."""
        return self._captions.get(extension)

    @property
    def expected(self) -> str:
        """The extensions that images must have, if they were given."""
        return " or ".join(self._images) if self.image_key is not None else ""

    def is_of_webdataset(self, name: str, extension: str) -> bool:
        """Whether a member describes the shard, such as `__index__.json`, and is not an image or caption."""
        about = _OF_WEBDATASET.match(text_of_name(name)) is not None
        return about and not self.is_image(extension) and not self.is_caption(extension)

    def _last_part(self, extension: str) -> str | None:
        return extension.rpartition(".")[2] if self.key_split == "first" else None


def shorter_keys(key: str) -> list[str]:
    """The key without its last dotted part, without its last two, and so on: `a/photo.meta` belongs to `a/photo`."""
    folder, slash, base = key.rpartition("/")
    parts = base.split(".")
    return [folder + slash + ".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1) if any(parts[:n])]


def text_of_name(name: str) -> str:
    """Write invalid UTF-8 bytes of a name as \\xff. Arrow accepts no surrogates, and names stay distinct."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _extensions(option: str, value: str | None) -> dict[str, str | None]:
    """Field by extension, None = the whole member."""
    found: dict[str, str | None] = {}
    for one in re.split(r"[;,]", value or ""):
        extension, colon, field = one.strip().partition(":")
        extension = extension.strip().removeprefix("*").strip(".").lower()
        if extension and (field.strip() or not colon):
            found[extension] = field.strip() or None
        elif one.strip() or extension:
            raise UserError(f"{option} is {value!r}; expected an extension such as jpg, or several such as 'jpg;png'")
    if value is not None and not found:
        raise UserError(f"{option} is {value!r}; expected an extension such as jpg, or several such as 'jpg;png'")
    return found
