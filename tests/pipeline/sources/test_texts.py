"""Every row of a table of texts becomes one item, and a file that is no whole table is one error."""

import gzip
import io
import json
import pickle
import re
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pez.errors import UserError
from pipeline.sources.base import Item, Unit, UnitError
from pipeline.sources.texts import MAX_TEXT_BYTES, TextSource

ROWS: list[dict[str, Any]] = [{"prompt": f"a cat {i}", "id": f"k{i}"} for i in range(5)]


def items(path: str | Path, column: str = "prompt", key_column: str | None = None) -> list[Item]:
    return list(TextSource(column, key_column).read(Unit(str(path), "a")))


def json_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(path: Path, rows: list[dict[str, Any]] | pa.Table, **options: Any) -> Path:
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), path, **options)
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture(params=["parquet", "jsonl", "jsonl.gz"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"a.{request.param}"
    if request.param == "parquet":
        return parquet(path, ROWS, row_group_size=2)
    data = json_lines(ROWS)
    return written(path, gzip.compress(data) if request.param.endswith("gz") else data)


def test_every_row_is_an_item_keyed_by_its_number(table: Path) -> None:
    found = items(table)
    assert [(i.index, i.key, i.text, i.caption) for i in found] == [
        (n, f"{n:06d}", f"a cat {n}", f"a cat {n}") for n in range(5)
    ]
    assert {(i.status, i.reason, i.image) for i in found} == {("ok", None, None)}


def test_a_column_can_hold_the_keys(table: Path) -> None:
    assert [i.key for i in items(table, key_column="id")] == [f"k{n}" for n in range(5)]


def test_a_store_is_read_as_a_disk_is(table: Path) -> None:
    fsspec.filesystem("memory").pipe_file(f"/texts/{table.name}", table.read_bytes())
    assert items(f"memory://texts/{table.name}") == items(table)


def test_the_bytes_tell_the_kind_of_a_table_and_not_its_name(table: Path) -> None:
    expected = items(table)
    assert items(table.rename(table.with_name("table.bin"))) == expected


def test_a_missing_column_names_those_that_are_there(table: Path) -> None:
    with pytest.raises(
        UnitError, match=r"has no column 'text'; it has 'prompt', 'id': name one with --column$"
    ) as error:
        items(table, "text")
    assert error.value.permanent
    assert pickle.loads(pickle.dumps(error.value)).permanent
    with pytest.raises(UnitError, match=r"has no column 'key'; it has 'prompt', 'id': name one with --key-column$"):
        items(table, key_column="key")


def test_a_table_cut_short_anywhere_is_an_error_or_says_all_it_has(table: Path) -> None:
    data = table.read_bytes()
    for length in range(1, len(data) - 1, 7):
        table.write_bytes(data[:length])
        try:
            found = items(table)
        except UnitError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert table.name in str(error)  # noqa: PT017
        else:  # JSON lines that end with a line
            assert table.suffix == ".jsonl"
            assert [i.text for i in found] == [row["prompt"] for row in ROWS[: len(found)]]
            assert data[:length].count(b"}") == len(found)


def test_no_value_is_lost_whatever_it_is(tmp_path: Path) -> None:
    values = [None, "", "  ", 3, 1.5, True, ["a"], {"b": 1}, "x" * (MAX_TEXT_BYTES + 1), "half \ud800", "a cat"]
    found = items(written(tmp_path / "a.jsonl", json_lines([{"prompt": value} for value in values] + [{"id": 1}])))
    assert [(i.key, i.status) for i in found] == [
        *((f"{n:06d}", "no_text") for n in range(3)),
        *((f"{n:06d}", "bad_text") for n in range(3, 9)),
        ("000009", "ok"),
        ("000010", "ok"),
        ("000011", "no_text"),
    ]
    assert [i.reason for i in found[:8]] == [
        "the column 'prompt' is null here; expected a text",
        "the column 'prompt' is empty here; expected a text",
        "the column 'prompt' is empty here; expected a text",
        "the column 'prompt' holds a number here; expected a text",
        "the column 'prompt' holds a number here; expected a text",
        "the column 'prompt' holds true or false here; expected a text",
        "the column 'prompt' holds a list here; expected a text",
        "the column 'prompt' holds an object here; expected a text",
    ]
    assert found[9].text == "half \N{REPLACEMENT CHARACTER}"
    assert all((i.text is None) == (i.status != "ok") == (i.reason is not None) for i in found)


def test_keys_are_unique_or_the_row_says_why_it_has_none(tmp_path: Path) -> None:
    keys: list[Any] = ["a", "b", "a", None, "", 7, 7, 1.5, [], "000003", "b"]
    rows = [{"prompt": f"text {n}", "id": key} for n, key in enumerate(keys)]
    found = items(written(tmp_path / "a.jsonl", json_lines(rows)), key_column="id")
    assert len({i.key for i in found}) == len(keys)
    assert [(i.key, i.status) for i in found] == [
        ("a", "ok"),
        ("b", "ok"),
        ("000002", "bad_key"),
        ("000003", "bad_key"),
        ("000004", "bad_key"),
        ("7", "ok"),
        ("000006", "bad_key"),
        ("000007", "bad_key"),
        ("000008", "bad_key"),
        ("000009", "bad_key"),
        ("000010", "bad_key"),
    ]
    assert [found[n].reason for n in (2, 3, 7)] == [
        "the key 'a' is also that of row 000000; expected unique keys",
        "the key column 'id' holds null here; expected a text or an integer",
        "the key column 'id' holds a number here; expected a text or an integer",
    ]
    assert [i.caption for i in found] == [f"text {n}" for n in range(len(keys))]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_lines_are_read_as_editors_write_them(tmp_path: Path, encoding: str, ends: str) -> None:
    lines = [
        '{"prompt": "a café \N{GRINNING FACE}"}',
        "",
        "   ",
        '{"prompt": "line\u2028separator"}',
        '{"prompt": "last"}',
    ]
    text = ends.join(lines)  # and no end of the last line
    found = items(written(tmp_path / "a.jsonl", text.encode(encoding)))
    assert [(i.key, i.text) for i in found] == [
        ("000000", "a café \N{GRINNING FACE}"),
        ("000001", "line\u2028separator"),
        ("000002", "last"),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{nonsense}", "line 2 is not JSON .*; expected an object"),
        (b'{"prompt": "open', "line 2 is not JSON .*; expected an object"),
        (b"[1, 2]", "line 2 is not a JSON object but list; expected an object"),
        (b'"text"', "line 2 is not a JSON object but str; expected an object"),
        (b"[" * 100_000, "line 2 cannot be read|line 2 is not JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "line 2 cannot be read"),
        (b"\xff\xfe\xfd", "line 2 is not JSON"),
    ],
    ids=range(7),
)
def test_a_line_that_is_no_object_is_a_row_with_a_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    data = json_lines([{"prompt": "first"}]) + line + b"\n" + json_lines([{"prompt": "last"}])
    found = items(written(tmp_path / "a.jsonl", data))
    assert [(i.key, i.status) for i in found] == [("000000", "ok"), ("000001", "bad_text"), ("000002", "ok")]
    assert re.match(reason, found[1].reason or "")
    keyed = items(written(tmp_path / "b.jsonl", data.replace(b'"prompt"', b'"prompt": "x", "id"')), "prompt", "id")
    assert [(i.key, i.status) for i in keyed] == [("first", "ok"), ("000001", "bad_text"), ("last", "ok")]


def test_a_line_that_is_too_long_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.json_lines.MAX_LINE", 100)
    data = json_lines([{"prompt": "first"}, {"prompt": "x" * 200}, {"prompt": "last"}])
    found = items(written(tmp_path / "a.jsonl", data))
    assert [i.status for i in found] == ["ok", "bad_text", "ok"]
    assert found[1].reason == "line 2 has more than 100 characters; expected a JSON object"


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("a.jpg"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty, not a table: copy or make it again"),
        (
            b"prompt,id\na cat,1\n",
            "is not a table: found 'prompt,id'; expected Parquet, or JSON lines with one object per line",
        ),
        (
            b'[\n {"prompt": "a"}\n]\n',
            r"is not a table: found '\['; .*to convert a JSON array: jq -c '.\[\]' FILE",
        ),
        (b'{\n "prompt": "a"\n}\n', "is not a table: found '{'"),
        (tar(), "is a tar, not a table: tars of images are read by: pez caption"),
        (gzip.compress(tar()), "is gzip, and inside a tar, not a table"),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), r"is an image \(PNG\), not a table: expected Parquet, or JSON lines"),
        (b"PK\x03\x04" + bytes(500), "is a ZIP archive, not a table"),
        (b"<!DOCTYPE html><title>Sign in</title>", "an HTML page .Sign in. instead of the file"),
        (b"PAR1" + bytes(500), "is a Parquet file that is damaged or truncated"),
        (gzip.compress(json_lines(ROWS))[:-10], "cannot read .*ended before"),
        (json_lines(ROWS)[:-9], "is truncated inside line 5 .*; make or copy it again"),
    ],
    ids=range(12),
)
def test_what_is_no_whole_table_is_named_in_one_line(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(UnitError, match=f"a.jsonl.*{words}|{words}") as error:
        items(written(tmp_path / "a.jsonl", data))
    assert "\n" not in str(error.value)
    assert "a.jsonl" in str(error.value)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    for url in (str(tmp_path / "gone.parquet"), "memory://gone.parquet"):
        with pytest.raises(UnitError, match=r"cannot read .*gone.parquet: .*[Nn]o such file"):
            items(url)


def test_a_parquet_column_that_holds_no_texts_is_an_error(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [{"n": 1, "v": [0.5], "prompt": "a", "when": 1.5}])
    words = "has int64 in its column 'n'; expected texts; its columns of texts: 'prompt'"
    with pytest.raises(UnitError, match=words):
        items(path, "n")
    assert [i.key for i in items(path, "prompt", "n")] == ["1"]
    with pytest.raises(UnitError, match="has double in its column 'when'; expected texts or integers"):
        items(path, "prompt", "when")


def test_a_column_name_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", pa.table([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"]))
    with pytest.raises(UnitError, match="has 2 columns 'prompt'"):
        items(path)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_texts_of_every_arrow_kind_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array(["a", None, "b.c"]).cast(kind)
    path = parquet(tmp_path / "a.parquet", pa.table({"x.y": column, "x": pa.array([{"y": "no"}] * 3)}))
    assert [i.text for i in items(path, "x.y")] == ["a", None, "b.c"]


def test_a_parquet_text_that_is_not_utf8_is_a_row(tmp_path: Path) -> None:
    raw = pa.array([b"a", b"\xff\xfe", b"c"], pa.binary())
    texts = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    path = parquet(tmp_path / "a.parquet", pa.table({"prompt": texts}))
    found = items(path)
    assert [(i.text, i.status) for i in found] == [("a", "ok"), (None, "bad_text"), ("c", "ok")]
    assert found[1].reason == "the column 'prompt' holds bytes that are not UTF-8 here; expected a text"


@pytest.mark.parametrize("extension", ["parquet", "jsonl"])
def test_memory_does_not_grow_with_the_table(tmp_path: Path, extension: str) -> None:
    count, text = 60_000, "a cat " * 200
    path = tmp_path / f"a.{extension}"
    if extension == "parquet":
        parquet(path, pa.table({"prompt": [f"{i} {text}" for i in range(count)]}), row_group_size=5000)
    else:
        with path.open("w") as file:
            file.writelines(json.dumps({"prompt": f"{i} {text}"}) + "\n" for i in range(count))
    before = peak = psutil.Process().memory_info().rss
    rows = 0
    for rows, _ in enumerate(TextSource("prompt").read(Unit(str(path), "a")), 1):
        if rows % 1000 == 0:
            peak = max(peak, psutil.Process().memory_info().rss)
    assert rows == count
    assert peak - before < 48 * 2**20


def test_sizes_and_settings_are_told(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", ROWS)
    lines = written(tmp_path / "a.jsonl", json_lines(ROWS))
    source = TextSource("prompt")
    for file in (path, lines):
        unit = Unit(str(file), "a")
        assert source.size(unit) == sum(item.size for item in source.read(unit))
    assert source.size(Unit("s3://bucket/a.parquet", "a")) is None
    assert source.size(Unit(str(tmp_path / "gone.jsonl"), "a")) is None
    assert source.size(Unit(str(written(tmp_path / "b.parquet", b"PAR1 and no more")), "b")) is None
    assert source.describe() == {"kind": "texts", "column": "prompt"}
    assert TextSource("p", "id").describe() == {"kind": "texts", "column": "p", "key_column": "id"}
    with pytest.raises(UserError, match="column is empty; expected the name of a column"):
        TextSource(" ")
