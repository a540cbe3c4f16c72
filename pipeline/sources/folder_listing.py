"""The contents of a folder of images: its files, their keys and captions, and the units that they form.

Hidden files and folders, outputs of jobs, and other files are not input; they are counted by reason.
"""

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor

import fsspec

from pez.errors import UserError
from pez.images import kind_of
from pipeline.sources.folders import ImageList, ListedImage, unit_url, url_below
from pipeline.sources.member_names import IMAGE_EXTENSIONS, OF_SYSTEMS, PLUGIN_EXTENSIONS, MemberNames, text_of_name
from pipeline.sources.stores import listing_options, one_line
from pipeline.urls import IMAGE_TABLE_EXTENSIONS, TAR_EXTENSIONS, is_local, public_url, redact

OTHER_IMAGES = (
    "svg",
    "psd",
    "jp2",
    "j2k",
    "jpx",
    "ico",
    "icns",
    "tga",
    "dng",
    "cr2",
    "cr3",
    "nef",
    "arw",
    "raf",
    "orf",
)
"""extensions of images that are not decoded; their rows say so"""
_IMAGES = {*IMAGE_EXTENSIONS, *PLUGIN_EXTENSIONS, *OTHER_IMAGES}
_USUAL = re.compile(r"(?=.*[a-z])[a-z0-9]{1,5}")
"""a usual extension, which is trusted; with others, as in `photo.1` or `photo.jpg_large`, the first bytes are checked"""
_HEAD = 1024
_READS_AT_ONCE = 32


@dataclasses.dataclass(frozen=True)
class Files:
    """The files below a folder."""

    root: str
    paths: list[str]
    """of all visible files, relative to the root, sorted"""
    left_out: Counter[str]
    """number of other files, by reason"""


def files_below(root: str, output: str | None = None) -> Files:
    """List a folder, local or in an object store. Links to folders are followed; each folder is listed once.

    Args:
        output: folder of the job, which is not input.

    Raises:
        UserError: it cannot be listed.
    """
    left_out: Counter[str] = Counter()
    found = _walk(root, left_out) if is_local(root) else _listed_by_store(root, left_out)
    before = root.rstrip("/") + "/"
    if output is not None and (output := public_url(output.rstrip("/"))).startswith(before):
        ours = output.removeprefix(before)
        found = (path for path in found if not path.startswith((f"{ours}/", f"{ours}.pez/")))
    return Files(root, sorted(found, key=os.fsencode), left_out)


def _walk(root: str, left_out: Counter[str]) -> Iterator[str]:
    seen: set[str] = set()
    waiting = [("", root)]
    while waiting:
        below, folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        if below and _is_output(folder):
            left_out["folders that a job wrote"] += 1
            continue
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            if not below:
                raise UserError(f"cannot list {folder}: {error.strerror or error}") from error
            left_out[f"folders that cannot be listed, like {text_of_name(below.rstrip('/'))}"] += 1
            continue
        deeper = []
        for entry in entries:
            if _is_hidden(entry.name):
                left_out["hidden"] += 1
            elif entry.is_dir():
                deeper.append((f"{below}{entry.name}/", entry.path))
            else:
                yield below + entry.name
        waiting += reversed(deeper)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX" or name.lower() in OF_SYSTEMS


def _is_output(folder: str) -> bool:
    if os.path.exists(os.path.join(folder, "_gallery.json")):
        return True
    try:
        with open(os.path.join(folder, "_run.json"), encoding="utf-8") as file:
            return "fingerprint" in json.load(file)
    except (OSError, ValueError, TypeError):
        return False


def _listed_by_store(root: str, left_out: Counter[str]) -> list[str]:
    try:
        fs, path = fsspec.core.url_to_fs(root, **listing_options(root))
        found = fs.find(path.rstrip("/"))
    except Exception as error:  # each filesystem has its own errors
        raise UserError(f"cannot list {redact(root)!r}: {redact(one_line(error), root)}") from error
    start = path.strip("/") + "/"
    paths = [name.lstrip("/")[len(start) :] for name in found if name.lstrip("/").startswith(start)]
    outputs = tuple(p.rpartition("/")[0] + "/" for p in paths if p.endswith(("/_run.json", "/_gallery.json")))
    visible = []
    for one in paths:
        if any(_is_hidden(part) for part in one.split("/")):
            left_out["hidden"] += 1
        elif outputs and one.startswith(outputs):
            left_out["files that a job wrote"] += 1
        elif one and not one.endswith("/"):
            visible.append(one)
    return visible


def is_image_name(path: str) -> bool:
    """Whether the name of a file is that of an image."""
    return path.rpartition(".")[2].lower() in _IMAGES


def images_of(
    files: Files, names: MemberNames, taken: Set[str] = frozenset(), keys: Set[str] = frozenset()
) -> tuple[list[ListedImage], Counter[str]]:
    """The images among files, and the number of files left out, by reason.

    Args:
        taken: paths of images that are already in units.
        keys: the keys of these images.

    A file without a usual extension is an image if its first bytes are those of one.
    """
    left_out = Counter(files.left_out)
    images: dict[str, str] = {}  # key, without extension, by path
    captions: dict[str, list[str]] = {}
    doubtful: list[str] = []
    for path in files.paths:
        key, extension = names.split(path)
        if key is not None and names.is_caption(extension):
            captions.setdefault(key, []).append(path)
        elif names.image_key is not None:
            if key is not None and names.is_image(extension):
                images[path] = key
            else:
                left_out[_no_image(extension)] += 1
        elif key is not None and (names.is_image(extension) or extension.rpartition(".")[2] in _IMAGES):
            images[path] = key
        elif not _USUAL.fullmatch(extension):
            doubtful.append(path)
        else:
            left_out[_no_image(extension)] += 1
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        checked = pool.map(lambda path: path in taken or _begins_an_image(files.root, path), doubtful)
        for path, is_image in zip(doubtful, checked, strict=True):
            if is_image:
                images[path] = text_of_name(path)
            else:
                left_out[_no_image(names.split(path)[1])] += 1
    new = {path: key for path, key in images.items() if path not in taken}
    own = _own_keys(new, keys)
    used: set[str] = set()
    listed = [ListedImage(path, own[path], _caption_of(path, key, captions, used)) for path, key in sorted(new.items())]
    known = {*images.values(), *map(text_of_name, images)}
    alone = sum(len(paths) for key, paths in captions.items() if key not in known)
    if alone:
        left_out["captions without an image"] += alone
    more = sum(len(paths) - (key in used) for key, paths in captions.items() if key in known)
    if more and not taken:
        left_out["another caption of its image"] += more
    return listed, left_out


def _no_image(extension: str) -> str:
    return f"no images (.{extension[:20]})" if extension else "no images (no extension)"


def _begins_an_image(root: str, path: str) -> bool:
    url = url_below(root, path)
    try:
        if not is_local(root):
            fs, inner = fsspec.core.url_to_fs(url, **listing_options(url))
            return kind_of(fs.cat_file(inner, start=0, end=_HEAD)) is not None
        if not os.path.isfile(url):
            return False
        with open(url, "rb") as file:
            return kind_of(file.read(_HEAD)) is not None
    except Exception:  # each filesystem has its own errors
        return False


def _own_keys(stems: dict[str, str], taken: Set[str]) -> dict[str, str]:
    """A key for each path: its stem, or its path if the stem is not unique. Keys given by an earlier run never change."""
    keys = dict(stems)
    while True:
        times = Counter(keys.values())
        doubled = [path for path, key in keys.items() if (times[key] > 1 or key in taken) and key != text_of_name(path)]
        if not doubled:
            break
        keys |= {path: text_of_name(path) for path in doubled}
    given = set(taken)
    for path in sorted(keys):
        while keys[path] in given:
            keys[path] += "_"
        given.add(keys[path])
    return keys


def _caption_of(path: str, stem: str, captions: dict[str, list[str]], used: set[str]) -> str | None:
    """The path of an image's caption: `a.jpg.txt` before `a.txt`."""
    for key in (text_of_name(path), stem):
        if found := captions.get(key):
            used.add(key)
            return found[0]
    return None


def lists_of(root: str, images: Sequence[ListedImage], per_unit: int, first: int, stem: str) -> list[ImageList]:
    """Divide the images of a folder into units.

    Args:
        first: number of the first unit.
        stem: prefix of the names of the output files.
    """
    starts = range(0, len(images), per_unit)
    return [
        ImageList(unit_url(root, number), f"{stem}-{number:05d}", number, root, tuple(images[start : start + per_unit]))
        for number, start in enumerate(starts, first)
    ]


def what_is_in(paths: Iterable[str]) -> Counter[str]:
    """The numbers of tars, tables and images, by name; `parquet` counts tables that do not just describe images beside them."""
    counts = Counter[str]()
    for path in paths:
        name = path.lower()
        if name.endswith(TAR_EXTENSIONS):
            counts["tars"] += 1
        elif name.endswith(IMAGE_TABLE_EXTENSIONS):
            counts["tables"] += 1
            counts["parquet"] += name.endswith(".parquet") and not name.endswith("metadata.parquet")
        elif is_image_name(name):
            counts["images"] += 1
    return counts


def urls_of(lists: Collection[ImageList]) -> set[str]:
    """The paths or URLs of all images of some lists."""
    return {url_below(one.root, image.path) for one in lists for image in one.images}
