"""Sums of image features by group, of one input file each, and their files in an output folder.

out/_sums/<stem>.<run>.npy       (groups, dim) float64, a row for each group with an image, ordered by hash
out/_sums/<stem>.<run>.parquet   the groups in the same order: hash, group, images, failed, status, reason, and row

A partition is a range of hashes, so its rows are contiguous: one small read in each file. The number of partitions is chosen
after all sums are written. An input file with very many groups has several runs, so that a worker's memory does not grow.

Features are summed in float64. A float32 has 24 bits and a float64 has 53, so the sum of a few hundred unit features is
exact but for components below about 1e-6. Besides, sums are always added in the same order.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.folder import OutputFolder
from pipeline.parquet import opened, rows_between
from pipeline.sources.base import UnitError

Vector = npt.NDArray[np.float64]

HASH_BITS = 63  # a hash fits in Parquet's int64
MAX_BYTES = 128 * 2**20
"""of the vectors that a writer holds before it begins another run"""
_GROUPS = pa.schema(
    [
        pa.field("hash", pa.int64(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("images", pa.int32(), nullable=False),
        pa.field("failed", pa.int32(), nullable=False),
        pa.field("status", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("row", pa.int32()),
    ]
)
_ROW_GROUP = 4096
_ABOUT = b"pez-sums"


@dataclasses.dataclass
class GroupSum:
    """The images of one group."""

    images: int = 0
    """images with a feature"""
    failed: int = 0
    """images without one"""
    status: str | None = None
    """of the first image that failed"""
    reason: str | None = None
    """its key, and why it failed"""
    vector: Vector | None = None
    """(dim,) sum of unit features; None without images"""

    def add(self, other: "GroupSum") -> None:
        """Add the images of another sum; this one's come first."""
        self.images += other.images
        self.failed += other.failed
        if self.status is None:
            self.status, self.reason = other.status, other.reason
        if self.vector is None:
            self.vector = other.vector
        elif other.vector is not None:
            self.vector = self.vector + other.vector


def hash_of(group: str) -> int:
    """63 bits that determine the partition of a group."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) >> 1


def bounds(partition: int, partitions: int) -> tuple[int, int]:
    """The first and last hash of a partition."""
    first, following = (-(-(p << HASH_BITS) // partitions) for p in (partition, partition + 1))
    return first, following - 1


class SumsWriter:
    """Adds up the features of one input file, and writes the sums.

    Args:
        folder: the output.
        stem: base name of the files.
    """

    def __init__(self, folder: OutputFolder, stem: str) -> None:
        self.folder, self.stem = folder, stem
        self.runs = 0
        """files written so far"""
        self._sums: dict[str, GroupSum] = {}
        self._bytes = 0

    def add(self, group: str, added: GroupSum) -> None:
        """Add an image. Vectors of more than MAX_BYTES together are written before."""
        found = self._sums.get(group)
        if found is None:
            size = 0 if added.vector is None else added.vector.nbytes
            if self._sums and self._bytes + size > MAX_BYTES:
                self._write()
            found = self._sums.setdefault(group, GroupSum())
            self._bytes += size
        found.add(added)

    def close(self) -> int:
        """Write the last sums.

        Returns:
            the number of runs, at least 1.
        """
        self._write()
        return self.runs

    def _write(self) -> None:
        ordered = sorted((hash_of(group), group, found) for group, found in self._sums.items())
        vectors = [found.vector for _, _, found in ordered if found.vector is not None]
        matrix = np.stack(vectors).astype("<f8") if vectors else np.zeros((0, 0))
        buffer = io.BytesIO()
        np.save(buffer, matrix)
        data = buffer.getvalue()
        about = {"offset": len(data) - matrix.nbytes, "dim": matrix.shape[1]}
        row, rows = 0, []
        for hashed, group, found in ordered:
            has = found.vector is not None
            rows.append((hashed, group, found.images, found.failed, found.status, found.reason, row if has else None))
            row += has
        columns = list(zip(*rows, strict=True)) or [()] * len(_GROUPS)
        arrays = [pa.array(values, field.type) for values, field in zip(columns, _GROUPS, strict=True)]
        index = io.BytesIO()
        schema = _GROUPS.with_metadata({_ABOUT: json.dumps(about).encode()})
        pq.write_table(pa.table(arrays, schema=schema), index, compression="zstd", row_group_size=_ROW_GROUP)
        name = run_name(self.stem, self.runs)
        self.folder.put(f"_sums/{name}.npy", data)
        self.folder.put(f"_sums/{name}.parquet", index.getvalue())
        self.runs += 1
        self._sums, self._bytes = {}, 0


def run_name(stem: str, run: int) -> str:
    """The name of a run's files, without extension."""
    return f"{stem}.{run:04d}"


def read_sums(folder: OutputFolder, name: str, partition: int, partitions: int) -> list[tuple[str, GroupSum]]:
    """The sums of the groups of one partition in one run.

    Raises:
        UnitError: the files are missing, damaged or cannot be read.
    """
    try:
        return list(_read(folder, name, partition, partitions))
    except Exception as error:  # each filesystem has its own errors
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UnitError(
            f"cannot read {folder.url}/_sums/{name}: {reason}; re-run the command, which makes missing files again"
        ) from error


def _read(folder: OutputFolder, name: str, partition: int, partitions: int) -> Iterator[tuple[str, GroupSum]]:
    first, last = bounds(partition, partitions)
    with folder.fs.open(folder.at(f"_sums/{name}.parquet"), "rb") as file:
        index = opened(file)
        about = json.loads((index.schema_arrow.metadata or {})[_ABOUT])
        groups = rows_between(index, "hash", first, last)
    at = [group["row"] for group in groups if group["row"] is not None]
    matrix = np.zeros((0, about["dim"]))
    if at:
        size = 8 * about["dim"]
        start, end = about["offset"] + at[0] * size, about["offset"] + (at[-1] + 1) * size
        data = folder.fs.cat_file(folder.at(f"_sums/{name}.npy"), start=start, end=end)
        matrix = np.frombuffer(data, dtype="<f8").reshape(-1, about["dim"])
    for group in groups:
        vector = None if group["row"] is None else matrix[group["row"] - at[0]].copy()
        yield (
            group["group"],
            GroupSum(group["images"], group["failed"], group["status"], group["reason"], vector),
        )


SKETCH = 256
"""hashes that a sketch keeps; the estimate then has a standard error of 6%"""


def sketch(hashes: Iterable[int]) -> list[int]:
    """The smallest distinct hashes, from which `estimated` derives the number of distinct ones.

    Source: k minimum values, Bar-Yossef et al. 2002, "Counting distinct elements in a data stream".
    """
    return sorted(set(hashes))[:SKETCH]


def estimated(smallest: list[int]) -> int:
    """The number of distinct groups, from the merged sketches; exact below SKETCH."""
    if len(smallest) < SKETCH:
        return len(smallest)
    return round((SKETCH - 1) * float(1 << HASH_BITS) / smallest[SKETCH - 1])
