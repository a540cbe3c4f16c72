"""Tables of images as a source: Parquet with embedded images, or Parquet, JSON lines or CSV with paths or URLs.

Each row is one item. Files are downloaded from web servers concurrently, with time limits and retries.
"""

import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.ahead import ahead
from pipeline.sources.base import Item, Unit, UnitError
from pipeline.sources.csv_rows import read_csv
from pipeline.sources.first_bytes import read_head
from pipeline.sources.image_files import MAX_IMAGE_BYTES, NotReadError, Reach, beside, read_file, shown
from pipeline.sources.json_lines import read_json_lines
from pipeline.sources.parquet_rows import is_text, open_parquet, rows_in
from pipeline.sources.stores import unreadable
from pipeline.sources.streams import ByteStream
from pipeline.sources.table_rows import BadValue, RowKeys, TableRow, kind_of_value

MAX_CAPTION_BYTES = 2**20
_BATCH = 16  # rows of images
_BUFFER = 2**20  # bytes of a column to read at once
_THREADS = 16  # threads that read files or download


@dataclasses.dataclass(frozen=True)
class ImageTableSource:
    """Tables of images. The kind of a table is detected from its bytes, not its name.

    Args:
        image_column: Parquet column with encoded images: binary, or the struct `{bytes, path}` of Hugging Face datasets.
        url_column: instead, a column with URLs or paths of image files; paths are relative to the table.
        key_column: column with the keys; None = the row number.
        caption_column: column with the captions; None = there are none.
        group_column: column that becomes `Item.field`, texts or integers.
    """

    image_column: str | None = None
    url_column: str | None = None
    key_column: str | None = None
    caption_column: str | None = None
    group_column: str | None = None

    columns = ()

    @property
    def nouns(self) -> tuple[str, str]:
        """See Source."""
        return "row", f"images in the column {self.image_column or self.url_column!r}"

    @property
    def named(self) -> dict[str, str]:
        """The columns to read, by the options that name them; the column of images comes first."""
        columns = {
            "--image-column": self.image_column,
            "--url-column": self.url_column,
            "--key-column": self.key_column,
            "--caption-column": self.caption_column,
            "--group-by": self.group_column,
        }
        return {option: name for option, name in columns.items() if name is not None}

    def read(self, unit: Unit, left_out: Counter[str] | None = None) -> Iterator[Item]:
        """Stream a table, see Source.

        Raises:
            UnitError: not readable, not a table, damaged, truncated, without the columns, or none of its files can be reached.
        """
        yield from self._read(unit, Counter() if left_out is None else left_out)

    def read_keys(self, unit: Unit, wanted: Collection[str]) -> Iterator[Item]:
        """The items of some keys; only their files are read. Raises as `read` does."""
        yield from self._read(unit, Counter(), wanted)

    def _read(self, unit: Unit, left_out: Counter[str], wanted: Collection[str] | None = None) -> Iterator[Item]:
        reach = Reach(unit, in_a_row=None)
        keys = RowKeys(self.key_column)

        def keyed() -> Iterator[tuple[int, TableRow, str, str | None]]:
            for index, row in enumerate(self._rows(unit)):
                key, bad = keys.key_of(index, row, self._cell(row, "--key-column"))
                if wanted is None or key in wanted:
                    yield index, row, key, bad

        def loaded(found: tuple[int, TableRow, str, str | None]) -> tuple[Item, NotReadError | None]:
            return self._item(unit, *found)

        for item, error in ahead(keyed(), loaded, _THREADS if self.url_column else 2, 2 * _THREADS):
            if item.status == "ok" or error is not None:
                reach.see(error)
            if item.caption is not None and len(item.caption) > MAX_CAPTION_BYTES:
                left_out[f"captions of more than {MAX_CAPTION_BYTES} bytes"] += 1
                item = dataclasses.replace(item, caption=None)
            yield item
        reach.conclude()

    def size(self, unit: Unit) -> int | None:
        """Rows of a local Parquet file, or bytes of another local table."""
        if "://" in unit.source:
            return None
        with contextlib.suppress(OSError, ValueError, UnitError):  # `read` reports the problem
            if table_kind(unit) == "parquet":
                return int(pq.read_metadata(unit.source).num_rows)
            return None if unit.source.lower().endswith(".gz") else os.stat(unit.source).st_size
        return None

    def describe(self) -> dict[str, Any]:
        """See Source."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "group_column"]
        values = {name: getattr(self, name) for name in names}
        return {"kind": "table", **{name: value for name, value in values.items() if value is not None}}

    def _cell(self, row: TableRow, option: str) -> Any:
        names = list(self.named)
        return row.cells[names.index(option)] if option in names and row.cells else None

    def _rows(self, unit: Unit) -> Iterator[TableRow]:
        kind, columns = table_kind(unit), list(self.named.values())
        if kind == "parquet":
            return self._parquet_rows(unit)
        if self.image_column is not None:
            raise UnitError(
                f"{unit.url} is not Parquet, so it cannot contain images; name a column of paths or URLs with --url-column",
                permanent=True,
            )
        read = read_json_lines if kind == "jsonl" else read_csv
        return read(unit, columns, list(self.named))

    def _parquet_rows(self, unit: Unit) -> Iterator[TableRow]:
        columns = list(self.named.values())
        with open_parquet(unit, buffer_size=_BUFFER) as file:
            for option, name in self.named.items():
                _expect_column(unit, file.schema_arrow, name, option)
            yield from rows_in(file, unit, columns, _BATCH)

    def _item(
        self, unit: Unit, index: int, row: TableRow, key: str, bad_key: str | None
    ) -> tuple[Item, NotReadError | None]:
        caption = self._cell(row, "--caption-column")
        if isinstance(caption, list):
            caption = next((text for text in caption if isinstance(text, str)), None)
        text = caption.strip() if isinstance(caption, str) else None
        bare = Item(index, key, caption=text, size=row.size, field=self._cell(row, "--group-by"))
        if row.reason is not None:
            return dataclasses.replace(bare, status="bad_image", reason=row.reason), None
        if bad_key is not None:
            return dataclasses.replace(bare, status="bad_key", reason=bad_key), None
        value, url = row.cells[0], None
        column = self.image_column or self.url_column
        if isinstance(value, dict):  # of Hugging Face datasets: the bytes, or else their path
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if value is None or (isinstance(value, str) and not value.strip()):
            reason = f"the column {column!r} is {'null' if value is None else 'empty'} here; expected an image"
            return dataclasses.replace(bare, status="no_image", reason=reason), None
        if isinstance(value, bytes):
            if len(value) > MAX_IMAGE_BYTES:
                reason = f"image of {len(value)} bytes; expected at most {MAX_IMAGE_BYTES}"
                return dataclasses.replace(bare, status="bad_image", reason=reason), None
            return dataclasses.replace(bare, image=value), None
        if isinstance(value, BadValue) or not isinstance(value, str):
            reason = f"the column {column!r} holds {kind_of_value(value)} here; expected an image, a path or a URL"
            return dataclasses.replace(bare, status="bad_image", reason=reason), None
        try:
            url = beside(unit.source, value)
            return dataclasses.replace(bare, image=read_file(url)), None
        except NotReadError as error:
            reason = f"{shown(url or value)}: {error}"
            return dataclasses.replace(bare, status="bad_image", reason=reason), error


def table_kind(unit: Unit) -> str:
    """`parquet`, `jsonl` or `csv`, by the first bytes; files of other kinds are reported when they are read.

    Raises:
        UnitError: it cannot be read.
    """
    try:
        with contextlib.closing(ByteStream(unit.source)) as stream:
            head = read_head(stream)
            if head[:2] == b"\x1f\x8b":
                import gzip

                with contextlib.closing(ByteStream(unit.source)) as again:
                    head = gzip.GzipFile(fileobj=again).read(64)
    except Exception as error:  # each filesystem has its own errors
        raise unreadable(unit.source, unit.url, error) from error
    if head[:4] == b"PAR1":
        return "parquet"
    text = (
        head.decode("utf-16", "replace") if head[:2] in (b"\xff\xfe", b"\xfe\xff") else head.decode("utf-8", "replace")
    )
    return "jsonl" if text.removeprefix("\ufeff").replace("\0", "").lstrip()[:1] in ("{", "[") else "csv"


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type can contain encoded images: binary, or a struct with `bytes`."""
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_binary(kind.field(place).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    view = getattr(pa.types, "is_binary_view", lambda _: False)  # in newer versions only
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or view(kind))


def _expect_column(unit: Unit, schema: pa.Schema, name: str, option: str) -> None:
    """Raise UnitError unless a column exists once and has a type that fits the option."""
    found = schema.get_all_field_indices(name)
    if len(found) != 1:
        how_many = "no column" if not found else f"{len(found)} columns"
        raise UnitError(
            f"{unit.url} has {how_many} {name!r}; it has {described(schema)}: name one with {option}", permanent=True
        )
    kind = schema.field(found[0]).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    listed = pa.types.is_list(kind) and is_text(kind.value_type)
    fits, expected = {
        "--image-column": (holds_images(kind), "images: binary, or a struct {bytes, path}"),
        "--url-column": (is_text(kind), "texts: paths or URLs"),
        "--key-column": (is_text(kind) or pa.types.is_integer(kind), "texts or integers"),
        "--caption-column": (is_text(kind) or listed, "texts"),
        "--group-by": (is_text(kind) or pa.types.is_integer(kind), "texts or integers"),
    }[option]
    if not fits and not pa.types.is_null(kind):
        raise UnitError(
            f"{unit.url} has {kind} in its column {name!r}; expected {expected}; it has {described(schema)}",
            permanent=True,
        )


def described(schema: pa.Schema, limit: int = 20) -> str:
    """The columns of a table and their types, for messages."""
    names = [f"{field.name!r} ({str(field.type)[:60]})" for field in schema][:limit]
    return ", ".join(names) + (", ..." if len(schema) > limit else "") or "none"
