"""Tables that hold images, or name files and URLs of them: a row for every row, with the reason where there is no image."""

import csv
import gzip
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from samples_on_disk import encoded
from web_images import WebImages

from pez.errors import UserError
from pipeline.folder import OutputFolder
from pipeline.settings import CaptionSettings
from pipeline.sources import image_files
from pipeline.sources.base import Item, Unit, UnitError
from pipeline.sources.found import Found
from pipeline.sources.image_inputs import find_images
from pipeline.sources.image_tables import ImageTableSource

PNG = encoded(Image.new("RGB", (8, 6), (200, 30, 30)))


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "WAITS", (0.0, 0.0))


def find(*patterns: object, **settings: object) -> Found:
    chosen = CaptionSettings(model="demo", **settings)  # type: ignore[arg-type]
    return find_images([str(p) for p in patterns], None, chosen, Counter())


def read(path: object, left_out: Counter[str] | None = None, **columns: str) -> list[Item]:
    return list(ImageTableSource(**columns).read(Unit(str(path), "a"), left_out))


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


ROWS = {"image": [PNG, None, b"", PNG], "id": [7, 8, 9, 7], "text": ["one", None, "three", "four"]}


def test_every_row_of_a_parquet_with_images_is_an_item(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", ROWS, row_group_size=2)
    found = read(path, image_column="image", caption_column="text")
    assert [item.key for item in found] == ["000000", "000001", "000002", "000003"]
    assert [item.status for item in found] == ["ok", "no_image", "ok", "ok"], "that it is empty is found by decoding"
    assert [item.caption for item in found] == ["one", None, "three", "four"]
    assert found[1].reason == "the column 'image' is null here; expected an image"
    keyed = read(path, image_column="image", key_column="id")
    assert [(item.key, item.status) for item in keyed][::3] == [("7", "ok"), ("000003", "bad_key")]


def test_the_struct_of_hugging_face_is_read_and_its_columns_are_found(tmp_path: Path) -> None:
    data = {"image": [Image.new("RGB", (8, 6), "red")] * 3, "label": [0, 1, 2], "text": ["a", "b", "c"]}
    datasets.Dataset.from_dict(data).cast_column("image", datasets.Image()).to_parquet(tmp_path / "a.parquet")
    found = find(tmp_path / "a.parquet")
    assert (found.settings.image_column, found.settings.caption_column) == ("image", "text")
    assert found.notes == ("columns: images in 'image', captions in 'text'",)
    items = read(tmp_path / "a.parquet", image_column="image", caption_column="text")
    assert all(item.image and item.image.startswith(b"\x89PNG") for item in items)


def test_a_struct_without_bytes_names_a_file_beside_the_table(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(PNG)
    column = [{"bytes": None, "path": "x.png"}, {"bytes": None, "path": "gone.png"}, {"bytes": PNG, "path": "x"}]
    path = parquet(tmp_path / "a.parquet", {"image": column})
    found = read(path, image_column="image")
    assert [item.image for item in found] == [PNG, None, PNG]
    assert found[1].reason == f"{tmp_path}/gone.png: there is no such file"


def test_of_several_columns_of_images_one_is_to_be_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"left": [PNG], "right": [PNG], "url": ["x"]})
    with pytest.raises(UserError, match=r"several possible columns, 'left', 'right'; name one with --image-column"):
        find(path)
    assert find(path, image_column="right").settings.image_column == "right"
    usual = parquet(tmp_path / "b.parquet", {"image": [PNG], "mask": [PNG]})
    assert find(usual).settings.image_column == "image"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"image_column": "img"},
            r"image_column is 'img', and .*a.parquet has no such column; it has 'picture' \(binary\)",
        ),
        ({"key_column": "id"}, "key_column is 'id', and .* has no such column; it has 'picture'"),
        ({"caption_column": "x"}, "caption_column is 'x', and"),
        ({"image_key": "png"}, "--image-key has no effect on tables"),
    ],
)
def test_an_unknown_column_is_one_line_that_says_what_was_found(
    tmp_path: Path, options: dict[str, str], words: str
) -> None:
    path = parquet(tmp_path / "a.parquet", {"picture": [PNG], "n": [1.5]})
    with pytest.raises(UserError, match=words) as error:
        find(path, **options)
    assert "\n" not in str(error.value)


def test_a_table_of_texts_names_its_columns_and_the_command_that_reads_it(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"prompt": ["x"]})
    with pytest.raises(UserError, match=r"no column of images; it has 'prompt' \(string\): name one .*pez distill"):
        find(path)


def test_a_later_file_without_the_column_fails_alone(tmp_path: Path) -> None:
    path = parquet(tmp_path / "b.parquet", {"other": [PNG], "image": [1]})
    for column, words in (
        ("picture", "has no column 'picture'; it has 'other'"),
        ("image", "has int64 in its column 'image'"),
    ):
        with pytest.raises(UnitError, match=words) as error:
            read(path, image_column=column)
        assert error.value.permanent


def test_a_damaged_parquet_fails_as_a_whole(tmp_path: Path) -> None:
    noise = [bytes([i % 251]) * 5000 for i in range(64)]
    path = parquet(tmp_path / "a.parquet", {"image": noise}, compression="none", row_group_size=16)
    data = path.read_bytes()
    for broken in (data[: len(data) // 2], data[:-20]):
        path.write_bytes(broken)
        with pytest.raises(UnitError, match="damaged|truncated"):
            read(path, image_column="image")


def test_a_folder_of_tables_is_their_files_nested_ones_too(tmp_path: Path) -> None:
    for name in ("data/train-0.parquet", "data/train-1.parquet", "other/x.parquet"):
        parquet(tmp_path / "set" / name, {"image": [PNG]})
    (tmp_path / "set" / "README.md").write_text("x")
    assert [unit.stem for unit in find(tmp_path / "set").units] == ["train-0", "train-1", "x"]
    assert [unit.stem for unit in find(tmp_path / "set/data").units] == ["train-0", "train-1"]
    fs = fsspec.filesystem("memory")
    fs.put(str(tmp_path / "set"), "/tables-of-store/", recursive=True)
    units = find("memory://tables-of-store").units
    assert [unit.stem for unit in units] == ["train-0", "train-1", "x"]
    assert [item.status for item in read(units[0].url, image_column="image")] == ["ok"]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A table of the kind that its name says."""
    if path.name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if ".csv" in path.name or ".tsv" in path.name:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(rows[0]), delimiter="\t" if ".tsv" in path.name else ",")
        writer.writeheader()
        writer.writerows(rows)
        text = buffer.getvalue()
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


TABLES = ("a.csv", "a.tsv", "a.csv.gz", "a.jsonl", "a.jsonl.gz", "a.parquet")


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_paths_reads_files_relative_to_itself(tmp_path: Path, name: str) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a b.png").write_bytes(PNG)
    (tmp_path / "abs.png").write_bytes(PNG)
    paths = ["pics/a b.png", str(tmp_path / "abs.png"), "gone.png", "", "pics", "pipe:cat x", "nope://x/y.png"]
    rows = [{"name": f"k{i}", "path": path, "caption": f'said "{i}",\nthen'} for i, path in enumerate(paths)]
    found = find(write(tmp_path / name, rows), key_column="name")
    assert (found.settings.url_column, found.settings.caption_column) == ("path", "caption")
    items = read(tmp_path / name, url_column="path", key_column="name", caption_column="caption")
    assert [item.key for item in items] == [f"k{i}" for i in range(7)]
    assert [item.status for item in items] == [
        "ok",
        "ok",
        "bad_image",
        "no_image",
        "bad_image",
        "bad_image",
        "bad_image",
    ]
    assert items[0].caption == 'said "0",\nthen'
    assert items[2].reason == f"{tmp_path}/gone.png: there is no such file"
    assert (items[4].reason or "").endswith("it is a folder; expected an image file")
    assert "commands are not opened" in (items[5].reason or "")
    assert "nope:// is not a protocol that fsspec knows" in (items[6].reason or "")


def test_a_csv_of_windows_has_semicolons_and_a_mark(tmp_path: Path) -> None:
    (tmp_path / "ä.png").write_bytes(PNG)
    (tmp_path / "a.csv").write_bytes("\ufeffFile;Text\r\nä.png;eins\r\n\r\nä.png;zwei\r\n".encode())
    found = find(tmp_path / "a.csv")
    assert (found.settings.url_column, found.settings.caption_column) == ("File", "Text")
    items = read(tmp_path / "a.csv", url_column="File", caption_column="Text")
    assert [(item.status, item.caption) for item in items] == [("ok", "eins"), ("ok", "zwei")]


def test_a_csv_whose_rows_are_ragged_or_cut_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("url,text\nx.png\nx.png,a,b\n")
    assert [item.reason for item in read(path, url_column="url")] == [
        "record 1 has 1 values, and the header has 2",
        "record 2 has 3 values, and the header has 2",
    ]
    path.write_text('url,text\nx.png,"cut')
    with pytest.raises(UnitError, match="truncated inside a quoted value"):
        read(path, url_column="url")
    path.write_text("")
    with pytest.raises(UserError, match="is empty, not a table|no column of images"):
        find(path)


def test_urls_are_downloaded_and_a_failed_one_is_a_row_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "SILENCE", 0.3)
    monkeypatch.setattr(image_files, "LONGEST", 0.6)
    with WebImages({"/a.png": PNG, "/ü b.png": PNG}).running() as web:
        names = (
            "a.png",
            "ü b.png",
            "gone.png",
            "500",
            "503-once",
            "cut",
            "hang",
            "drip",
            "redirect",
            "a.png?token=secret",
        )
        rows = [{"url": f"{web.url}/{name}"} for name in names] + [
            {"url": "http://127.0.0.1:9/x.png"},
            {"url": "http://["},
        ]
        items = read(write(tmp_path / "a.jsonl", rows), url_column="url")
        assert web.asked["/503-once"] == 2, "what may pass is tried again"
        assert web.asked["/gone.png"] == 1, "what will not is not"
        assert "pez-captions" in web.agent
    reasons = dict(zip((*names, "closed", "no url"), (item.reason for item in items), strict=True))
    ok = {name for name, reason in reasons.items() if reason is None}
    assert ok == {"a.png", "ü b.png", "503-once", "redirect", "a.png?token=secret"}
    assert reasons["gone.png"] == f"{web.url}/gone.png: HTTP 404 Not Found"
    assert "HTTP 500" in str(reasons["500"])
    assert "(3 attempts)" in str(reasons["500"])
    assert "it ended after" in str(reasons["cut"])
    assert "no answer in time" in str(reasons["hang"])
    assert "bytes came in" in str(reasons["drip"])
    assert "Connection refused" in str(reasons["closed"])
    assert reasons["no url"]


def test_a_table_on_a_web_server_names_files_beside_it(tmp_path: Path) -> None:
    table = write(tmp_path / "a.csv", [{"url": "deep/a b.png"}])
    with WebImages({"/t/a.csv": table.read_bytes(), "/t/deep/a b.png": PNG}).running() as web:
        [item] = read(f"{web.url}/t/a.csv", url_column="url")
    assert (item.image, item.reason) == (PNG, None)


def test_without_a_network_the_unit_fails_and_no_rows_are_made(tmp_path: Path) -> None:
    rows = [{"url": f"http://127.0.0.1:9/{i}.png"} for i in range(16)]
    with pytest.raises(UnitError, match="none of its 16 files can be reached; is there a network"):
        read(write(tmp_path / "a.jsonl", rows), url_column="url")


def test_secrets_of_urls_are_in_no_reason(tmp_path: Path) -> None:
    rows = [{"url": "http://user:pass@127.0.0.1:9/x.png?X-Amz-Signature=hidden"}]
    [item] = read(write(tmp_path / "a.jsonl", rows), url_column="url")
    assert "hidden" not in str(item.reason)
    assert "pass" not in str(item.reason)


def test_a_file_above_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_bytes(bytes(2000))
    with pytest.raises(image_files.NotReadError, match="image of 2000 bytes; expected at most 1000"):
        image_files.read_file(str(tmp_path / "x.png"), 1000)
    with (
        WebImages({"/x.png": bytes(2000)}).running() as web,
        pytest.raises(image_files.NotReadError, match="image of 2000 bytes; expected at most 1000"),
    ):
        image_files.read_file(f"{web.url}/x.png", 1000)


def test_find_images_needs_no_output(tmp_path: Path) -> None:
    output = OutputFolder(str(tmp_path / "out"))
    path = parquet(tmp_path / "a.parquet", {"image": [PNG]})
    found = find_images([str(path)], output, CaptionSettings(model="demo"), Counter())
    assert found.units == find(path).units
    assert not (tmp_path / "out").exists(), "looking writes nothing"
