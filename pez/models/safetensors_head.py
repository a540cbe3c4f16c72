"""The header of a safetensors file: its tensors and the expected file size."""

import json
from pathlib import Path
from typing import Any

_LONGEST = 100_000_000  # bytes of a header, by the format


def damage(file: Path) -> str | None:
    """Describe the damage of a weights file, judging by its header; None if there is none or the file is missing.

    Files in other formats are only checked for being git-lfs pointers.
    """
    if not file.is_file():
        return None
    with file.open("rb") as opened:
        first = opened.read(64)
    if first.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the file itself: run git lfs pull"
    if file.suffix.lower() != ".safetensors":
        return None if file.suffix.lower() == ".bin" else "is not a .safetensors file"
    try:
        head, begin = _head(file)
        length = begin + max((tensor["data_offsets"][1] for tensor in head.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return "is not safetensors, or is damaged"
    size = file.stat().st_size
    return f"is truncated: it has {size} of {length} bytes" if size < length else None


def shapes_of(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of an intact file, by name."""
    return {name: tuple(tensor["shape"]) for name, tensor in _head(file)[0].items()}


def _head(file: Path) -> tuple[dict[str, Any], int]:
    """The descriptions of the tensors, and the offset of the data."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= min(_LONGEST, file.stat().st_size - 8):
            raise ValueError("no header")
        head = json.loads(opened.read(length))
    return {name: tensor for name, tensor in head.items() if name != "__metadata__"}, 8 + length
