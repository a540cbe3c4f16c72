"""Which models of open_clip are on this machine, so that loading them needs no network."""

from pathlib import Path

import open_clip
from huggingface_hub import try_to_load_from_cache

_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_DOWNLOADS = "~/.cache/clip"  # where open_clip puts files that are not on the hub


def local_models() -> list[tuple[str, str]]:
    """The open_clip names and tags whose weights are in the hub's cache or in open_clip's."""
    return [(name, tag) for name, tag in open_clip.list_pretrained() if _is_local(name, tag)]


def _is_local(name: str, tag: str) -> bool:
    known = open_clip.get_pretrained_cfg(name, tag)
    repository, _, file = known.get("hf_hub", "").rpartition("/")
    if repository:
        return any(isinstance(try_to_load_from_cache(repository, each), str) for each in ([file] if file else _FILES))
    file = known.get("url", "").rpartition("/")[2]
    return bool(file) and (Path(_DOWNLOADS).expanduser() / file).is_file()
