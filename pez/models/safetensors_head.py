"""The head of a safetensors file, which says what is in it and how long it must be."""

import json
from pathlib import Path
from typing import Any

_LONGEST = 100_000_000  # bytes of a head, as the format has it


def damage(file: Path) -> str | None:
    """What is wrong with a file of weights as far as its first bytes tell; None where nothing is, or it is not there.

    Files of another kind than safetensors are looked at for being pointers only.
    """
    if not file.is_file():
        return None
    with file.open("rb") as opened:
        first = opened.read(64)
    if first.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer and not the file itself: run git lfs pull"
    if file.suffix.lower() != ".safetensors":
        return None if file.suffix.lower() == ".bin" else "is no .safetensors file"
    try:
        head, begin = _head(file)
        length = begin + max((tensor["data_offsets"][1] for tensor in head.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return "is no safetensors, or damaged"
    size = file.stat().st_size
    return f"is cut short: it has {size} bytes of {length}" if size < length else None


def shapes_of(file: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of a file that is not damaged, by name."""
    return {name: tuple(tensor["shape"]) for name, tensor in _head(file)[0].items()}


def _head(file: Path) -> tuple[dict[str, Any], int]:
    """What describes the tensors, and where their bytes begin."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= min(_LONGEST, file.stat().st_size - 8):
            raise ValueError("no head")
        head = json.loads(opened.read(length))
    return {name: tensor for name, tensor in head.items() if name != "__metadata__"}, 8 + length
