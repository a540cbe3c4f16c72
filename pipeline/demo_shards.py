"""The demo's shards: drawn scenes as WebDataset, made at first use, the same bytes everywhere."""

import io
import os
import secrets
from pathlib import Path

import webdataset as wds
from PIL import Image

from pez.demo import scenes

_SHARDS, _SCENES = 4, 16
_VERSION = 1  # of the scenes; a new one makes new files


def demo_shards() -> list[str]:
    """Addresses of the demo's tars: held-out scenes as PNG with their captions."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    folder = cache / "pez-captions" / f"demo-v{_VERSION}"
    paths = [folder / f"scenes-{i:05d}.tar" for i in range(_SHARDS)]
    pictured = scenes.held_out_scenes(_SHARDS * _SCENES)
    for i, path in enumerate(paths):
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            write_scenes(part, pictured[i * _SCENES : (i + 1) * _SCENES], first=i * _SCENES)
            part.replace(path)
    return [str(path) for path in paths]


def write_scenes(path: Path, pictured: list[scenes.Scene], first: int = 0) -> None:
    """Write scenes as one tar of `NNNNN.png` and `NNNNN.txt`."""
    # Fixed times and owners, so that the bytes depend on nothing else.
    with wds.TarWriter(str(path), mtime=0.0, user="pez", group="pez") as tar:
        for i, scene in enumerate(pictured, first):
            picture = io.BytesIO()
            Image.fromarray(scenes.render(scene)).save(picture, "PNG")
            tar.write({"__key__": f"{i:05d}", "png": picture.getvalue(), "txt": scenes.caption(scene)})
