"""Check that a local path is the same file for all processes of a job.

A local path refers to the driver's own disk. On another machine, the same path is a different folder unless the two share
the disk; prompts would be written where nobody looks for them. Also, the driver of a submitted job starts in a folder
that Ray unpacks for it and deletes later.
"""

import contextlib
import dataclasses
import itertools
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pez.errors import UserError
from pipeline.folder import OutputFolder
from pipeline.sources.base import Unit
from pipeline.urls import is_local, local_path

_FOLDERS = 16  # of the input, in each of which one file is checked
_PATIENCE = 5.0  # seconds until a file appears through a network


@dataclasses.dataclass(frozen=True)
class SharedDisk:
    """The files that an actor must see at the same paths as the driver.

    Args:
        output: the folder, and a file in it that only this run can have written; None = not on a disk.
        inputs: files and their sizes.
    """

    output: tuple[str, str] | None = None
    inputs: tuple[tuple[str, int], ...] = ()

    def check(self, node: str) -> None:
        """Check that all files are there.

        Args:
            node: name of the node that this runs on.

        Raises:
            UserError: a file is missing or different.
        """
        problem = (
            "is not the same as on the machine that started the job; "
            "share that disk with all nodes, or use an object store (s3://...)"
        )
        if self.output is not None and not _appears(self.output[1]):
            raise UserError(f"on node {node} the output {self.output[0]} {problem}")
        if self.output is not None and not os.access(self.output[0], os.W_OK):
            raise UserError(f"on node {node} the output {self.output[0]} cannot be written")
        for path, size in self.inputs:
            if not _appears(path) or os.stat(path).st_size != size:
                raise UserError(f"on node {node} the input {path} {problem}")


def check_outside_package(urls: Sequence[str], option: str) -> None:
    """Refuse paths in the folder that Ray unpacked for a submitted job, where relative paths lead.

    Raises:
        UserError: a path is in that folder.
    """
    for url in urls:
        if not is_local(url):
            continue
        parts = Path(local_path(url)).parts
        if any(a == "working_dir_files" and b.startswith("_ray_pkg_") for a, b in itertools.pairwise(parts)):
            raise UserError(
                f"--{option} {url} is in the folder that Ray unpacks for a submitted job and deletes later; pass an "
                "absolute path on a disk that all nodes share, or a URL in an object store, such as s3://bucket/folder"
            )


@contextlib.contextmanager
def shared_disk(folder: OutputFolder, units: Sequence[Unit]) -> Iterator[SharedDisk]:
    """Put a file into the output while actors start, by which they recognize it.

    Args:
        units: of the job; one file of each folder is checked.
    """
    by_folder: dict[str, str] = {}
    for unit in units:
        if is_local(unit.source):
            path = local_path(unit.source)
            by_folder.setdefault(os.path.dirname(path), path)
    files = [path for path in list(by_folder.values())[:_FOLDERS] if os.path.exists(path)]
    inputs = tuple((path, os.stat(path).st_size) for path in files)
    if not folder.local:
        yield SharedDisk(None, inputs)
        return
    name = f".shared.tmp-{secrets.token_hex(8)}"  # swept like any temporary file if this process is killed
    folder.put(name, b"")
    try:
        yield SharedDisk((folder.path, folder.at(name)), inputs)
    finally:
        folder.remove(name)


def _appears(path: str) -> bool:
    deadline = time.monotonic() + _PATIENCE
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
