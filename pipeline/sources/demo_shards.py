"""The demo's shards: drawn scenes as WebDataset, created at first use, with the same bytes everywhere."""

import contextlib
import io
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import webdataset as wds
from PIL import Image

from pez.demo import scenes
from pez.errors import UserError

_SHARDS, _SCENES = 4, 16
_VERSION = 1  # of the scenes; increment it to create new files


def demo_shards() -> list[str]:
    """Paths of the demo's tars: held-out scenes as PNG with their captions.

    They are in the user's cache, or in a folder for temporary files if the cache is not writable.

    Raises:
        UserError: neither is writable.
    """
    reasons = []
    for folder in _caches():
        try:
            return _written(folder / f"demo-v{_VERSION}")
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror or error}")
    raise UserError(f"no place for the demo's images ({'; '.join(reasons)}); set XDG_CACHE_HOME to a writable folder")


def _caches() -> Iterator[Path]:
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(chosen):
        yield Path(chosen) / "pez-captions"
    else:
        with contextlib.suppress(RuntimeError):  # there is no home folder
            yield Path.home() / ".cache" / "pez-captions"
    # Other users may write there too, so the folder must belong to the user and be closed to others.
    folder = Path(tempfile.gettempdir()) / f"pez-captions-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not folder.is_symlink() and (state := folder.stat()).st_uid == os.getuid() and not state.st_mode & 0o022:
        yield folder


def _written(folder: Path) -> list[str]:
    paths = [folder / f"scenes-{i:05d}.tar" for i in range(_SHARDS)]
    drawn = scenes.held_out_scenes(_SHARDS * _SCENES)
    for i, path in enumerate(paths):
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            try:
                write_scenes(part, drawn[i * _SCENES : (i + 1) * _SCENES], first=i * _SCENES)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
    return [str(path) for path in paths]


def write_scenes(path: Path, drawn: list[scenes.Scene], first: int = 0) -> None:
    """Write scenes as one tar of `NNNNN.png` and `NNNNN.txt`."""
    # Fixed times and owners, so that the bytes are reproducible.
    with wds.TarWriter(str(path), mtime=0.0, user="pez", group="pez") as tar:
        for i, scene in enumerate(drawn, first):
            image = io.BytesIO()
            Image.fromarray(scenes.render(scene)).save(image, "PNG")
            tar.write({"__key__": f"{i:05d}", "png": image.getvalue(), "txt": scenes.caption(scene)})
