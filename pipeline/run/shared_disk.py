"""Whether a local path is the same file for all who take part in a job.

A local path means the driver's own disk. On another machine the same path is another folder, unless the two share the
disk: prompts would be written where nobody looks for them. And the driver of a submitted job starts in a folder that
Ray unpacks for it and deletes later.
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
from pipeline.addresses import is_local, local_path
from pipeline.folder import OutputFolder
from pipeline.sources.base import Unit

_FOLDERS = 16  # of inputs, of which one file each is looked at
_PATIENCE = 5.0  # seconds until a file is seen through a network


@dataclasses.dataclass(frozen=True)
class SharedDisk:
    """What an actor must see at the same paths as the driver.

    Args:
        output: the folder, and in it a file that only this run can have written; None = not on a disk.
        inputs: files and their sizes.
    """

    output: tuple[str, str] | None = None
    inputs: tuple[tuple[str, int], ...] = ()

    def check(self, node: str) -> None:
        """See whether it is all there.

        Args:
            node: name of this one.

        Raises:
            UserError: it is not.
        """
        problem = "is not the one that the job was started with; share that disk among all nodes, or use an object store (s3://...)"
        if self.output is not None and not _appears(self.output[1]):
            raise UserError(f"on node {node} the output {self.output[0]} {problem}")
        if self.output is not None and not os.access(self.output[0], os.W_OK):
            raise UserError(f"on node {node} the output {self.output[0]} cannot be written")
        for path, size in self.inputs:
            if not _appears(path) or os.stat(path).st_size != size:
                raise UserError(f"on node {node} the input {path} {problem}")


def check_outside_package(addresses: Sequence[str], option: str) -> None:
    """Refuse what lies in the folder that Ray unpacked for a submitted job, as a relative path does there.

    Raises:
        UserError: it does.
    """
    for address in addresses:
        if not is_local(address):
            continue
        parts = Path(local_path(address)).parts
        if any(a == "working_dir_files" and b.startswith("_ray_pkg_") for a, b in itertools.pairwise(parts)):
            raise UserError(
                f"--{option} {address} is in the folder that Ray unpacks for a submitted job and deletes later; give an "
                "absolute path on a disk that all nodes share, or an object store, like s3://bucket/folder"
            )


@contextlib.contextmanager
def shared_disk(folder: OutputFolder, units: Sequence[Unit]) -> Iterator[SharedDisk]:
    """Leave a file in the output, while actors start, by which they know it.

    Args:
        units: of the job; a file of each folder is looked at.
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
    name = f".shared.tmp-{secrets.token_hex(8)}"  # swept like any temporary file, should this process be killed
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
