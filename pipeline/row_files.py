"""Rows in the Parquet files of an output folder: schema, metadata, and atomic writing."""

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.description import fingerprint
from pipeline.folder import Bookkeeping, DamagedError, OutputFolder
from pipeline.parquet import is_damage, opened, table_of
from pipeline.rows import CAPTIONED, SCHEMA, VERIFIED, Row
from pipeline.sources.base import Unit


class RowFiles(OutputFolder):
    """An output folder with Parquet files of rows.

    Args:
        url: the folder.
        settings: everything that determines the rows; see `pipeline/description.py`.
        bookkeeping: see OutputFolder.
        in_full: the settings with all defaults, for people who read `_run.json`.
        columns: extra columns of the source.
    """

    def __init__(
        self,
        url: str,
        settings: dict[str, Any],
        bookkeeping: Bookkeeping | None = None,
        in_full: dict[str, Any] | None = None,
        columns: Sequence[pa.Field] = (),
    ) -> None:
        super().__init__(url, bookkeeping)
        self.in_full = in_full or settings
        self.columns = tuple(columns)
        assert not {field.name for field in self.columns} & set(SCHEMA.names), (
            "extra columns must not shadow the fixed ones"
        )
        self.settings = settings
        self.fingerprint = fingerprint(settings)

    def write_rows(self, name: str, rows: Sequence[Row], about: dict[bytes, bytes] | None = None) -> None:
        """Publish rows as one Parquet file.

        Args:
            about: more metadata for its schema, in addition to the settings.
        """
        columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in rows] for name in CAPTIONED.names}
        columns |= {name: [None] * len(rows) for name in VERIFIED.names}
        columns |= {field.name: [row.columns.get(field.name) for row in rows] for field in self.columns}
        schema = pa.schema([*CAPTIONED, *self.columns, *VERIFIED])
        settings = json.dumps({"fingerprint": self.fingerprint, **self.settings}, sort_keys=True).encode()
        self.write_table(name, pa.table(columns, schema=schema.with_metadata({b"pez": settings, **(about or {})})))

    def write_table(self, name: str, table: pa.Table) -> None:
        """Publish a table as one Parquet file, atomically."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", row_group_size=65536)
        if opened(buffer).metadata.num_rows != table.num_rows:
            raise RuntimeError(f"{name} does not read back")
        self.put(name, buffer.getvalue())

    def read_rows(self, name: str) -> list[Row]:
        """Read what `write_rows` wrote, without the columns of verification. Raises as `read` does."""
        with self._opened(name) as file:
            table = table_of(file)
        extra = [field.name for field in self.columns]
        own, others = table.select(CAPTIONED.names).to_pylist(), table.select(extra).to_pylist()
        others = others if extra else [{}] * len(own)
        return [Row(**values, columns=dict(more)) for values, more in zip(own, others, strict=True)]

    def read_metadata(self, name: str) -> dict[bytes, bytes] | None:
        """The schema metadata of a Parquet file; None if there is no Parquet file.

        Raises:
            UserError: it cannot be opened, for example because it is a folder.
        """
        try:
            with self._opened(name) as file:
                return opened(file).schema_arrow.metadata or {}
        except (FileNotFoundError, DamagedError):
            return None

    def schema(self, shard: Unit) -> pa.Schema:
        """The columns of a finished shard. Raises as `read` does."""
        with self._opened(f"{shard.stem}.parquet") as file:
            return opened(file).schema_arrow

    def read(self, shard: Unit) -> pa.Table:
        """The rows of a finished shard.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedError: its contents are damaged.
            UserError: it cannot be read.
        """
        with self._opened(f"{shard.stem}.parquet") as file:
            return table_of(file)

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[IO[bytes]]:
        """A Parquet file, opened. Errors are those of `read`."""
        with self.reading(name):
            try:
                with self.fs.open(self.at(name), "rb") as file:
                    yield file
            except Exception as error:
                if not is_damage(error):
                    raise
                raise DamagedError(
                    f"{self.url}/{name} is damaged; remove it and re-run the command to recreate it"
                ) from error
