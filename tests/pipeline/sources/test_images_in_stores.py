"""Folders and tables of images in an object store, from a bucket into a bucket."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from caption_jobs import Run, run_caption
from object_store import ENVIRONMENT, ObjectStore, object_store
from PIL import Image
from samples_on_disk import encoded

from pipeline.sources import image_files
from pipeline.table import PromptTable


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return run_caption(monkeypatch, capsys)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, images: list[Image.Image], tmp_path: Path) -> Iterator[ObjectStore]:
    """A bucket with a folder of pictures, and a table of them and one of their URLs."""
    monkeypatch.setattr(image_files, "WAITS", (0.0, 0.0))
    with object_store() as served:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": served.url}.items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        fs = fsspec.filesystem("s3")
        fs.makedirs("pictures", exist_ok=True)
        for i in range(4):
            fs.pipe_file(f"pictures/in/deep {i}/{i}.png", encoded(images[i]))
        fs.pipe_file("pictures/in/deep 0/0.txt", b"of 0")
        fs.pipe_file("pictures/in/empty.jpg", b"")
        pq.write_table(pa.table({"image": [encoded(image) for image in images[:4]]}), tmp_path / "a.parquet")
        fs.put_file(str(tmp_path / "a.parquet"), "pictures/tables/a.parquet")
        urls = "url\ns3://pictures/in/deep 0/0.png\n../in/deep 1/1.png\ngone.png\n"
        fs.pipe_file("pictures/urls/a.csv", urls.encode())
        served.requests.clear()
        yield served


def statuses(out: str) -> dict[str, str]:
    table = PromptTable.written(out)
    rows = [row for unit in table.shards() for row in table.read(unit).to_pylist()]
    return {row["key"]: row["status"] for row in rows}


def test_a_folder_of_a_bucket_has_a_row_for_every_image_also_when_a_request_fails_in_passing(
    store: ObjectStore, run: Run
) -> None:
    failed: set[str] = set()

    def once(request: object) -> str | None:
        path = request.path  # type: ignore[attr-defined]
        if path.endswith("1.png") and path not in failed:
            failed.add(path)
            return "cut"
        return None

    store.fault = once  # type: ignore[assignment]
    status, out, errors = run("--input", "s3://pictures/in", "--output", "s3://pictures/out", "--images-per-unit", 3)
    assert status == 0, out + errors
    assert failed
    found = statuses("s3://pictures/out")
    assert found == {**{f"deep {i}/{i}": "ok" for i in range(4)}, "empty": "bad_image"}
    status, out, _ = run("--input", "s3://pictures/in", "--output", "s3://pictures/out")
    assert (status, "nothing to do" in out) == (0, True)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("s3://pictures/tables", ["ok"] * 4),
        ("s3://pictures/tables/*.parquet", ["ok"] * 4),
        ("s3://pictures/urls/a.csv", ["ok", "ok", "bad_image"]),
    ],
)
def test_tables_of_a_bucket_are_read(
    store: ObjectStore, run: Run, tmp_path: Path, pattern: str, expected: list[str]
) -> None:
    status, out, errors = run("--input", pattern, "--output", tmp_path / "out")
    assert status == 0, out + errors
    assert list(statuses(str(tmp_path / "out")).values()) == expected
