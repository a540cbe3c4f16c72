"""`pez gallery` writes a folder: rows, thumbnails and a page; images come from the input again, and nothing else is touched."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pytest
from caption_jobs import run_caption
from gallery_outputs import SETTINGS, colour, row, run_gallery, write_output, write_tar
from PIL import Image
from samples_on_disk import encoded

import pez
from pipeline.settings import LearnSettings
from pipeline.sources.base import Unit
from pipeline.stages.learned_columns import learned_columns
from pipeline.table import PromptTable

KEYS = [f"deep/{i}" for i in range(5)]


def rows_of(page: Path) -> list[list[Any]]:
    """The rows of a gallery, as its scripts have them."""
    found: list[list[Any]] = []
    for script in sorted(page.glob("rows-*.js")):
        text = script.read_text()
        number, rows = json.loads(f"[{text.removeprefix('gallery.rows(').removesuffix(');' + chr(10))}]")
        assert script.name == f"rows-{number:03d}.js"
        found += rows
    return found


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output of one tar, with a row that failed."""
    tar = tmp_path / "in/a.tar"
    write_tar(tar, KEYS)
    rows = [row(i, key, str(tar)) for i, key in enumerate(KEYS)]
    bad = {"prompt": None, "similarity": None, "token_similarity": None, "caption_similarity": None}
    rows[3] = row(3, KEYS[3], str(tar), status="bad_image", error_message="truncated", **bad)
    write_output(tmp_path / "out", {str(tar): rows}, warnings=["fewer lanes"], left_out={"hidden": 2})
    return tmp_path / "out"


def test_the_page_is_in_the_output_and_its_path_is_the_last_line(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, errors = run_gallery(monkeypatch, capsys, output)
    assert status == 0, errors
    assert out.splitlines()[-1] == f"{output}/_gallery/index.html"
    page = output / "_gallery"
    assert [r[0] for r in rows_of(page)] == KEYS
    assert rows_of(page)[3][2:4] == ["bad_image", None]
    html = (page / "index.html").read_text()
    assert "model.model" in html
    assert "fewer lanes" in (page / "units.js").read_text()
    for i in range(5):
        with Image.open(page / f"thumbs/000/{i:06d}.webp") as image:
            assert image.size == (256, 192)
            pixel = image.convert("RGB").getpixel((100, 100))
            assert isinstance(pixel, tuple)
            assert max(abs(a - b) for a, b in zip(pixel, colour(i), strict=True)) < 12


def test_a_second_gallery_takes_the_place_of_the_first(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_gallery(monkeypatch, capsys, output)[0] == 0
    assert run_gallery(monkeypatch, capsys, output, "--sample", 2, "--thumbnail", 64)[0] == 0
    page = output / "_gallery"
    assert len(rows_of(page)) == 2
    assert len(list(page.rglob("*.webp"))) == 2
    assert "2 of 5 rows" in " ".join((page / "index.html").read_text().split())


def test_a_sample_is_the_same_each_time_and_of_all_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = {f"/gone/{t}.tar": [row(i, f"{t}-{i}", f"/gone/{t}.tar") for i in range(20 + t)] for t in range(4)}
    write_output(tmp_path / "out", shards)
    found = []
    for name in ("a", "b"):
        status, out, _ = run_gallery(monkeypatch, capsys, tmp_path / "out", "--to", tmp_path / name, "--sample", 10)
        assert status == 0
        assert "10 of 86 rows, 10 without an image" in out
        assert out.count("its images are left out") == 4
        found.append(rows_of(tmp_path / name))
    assert found[0] == found[1]
    assert sorted({r[1] for r in found[0]}) == [0, 1, 2, 3]
    assert all(r[-1] == 0 for r in found[0]), "they have placeholders"


def test_generated_images_that_were_kept_are_shown(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (output / "_regenerated").mkdir()
    with tarfile.open(output / "_regenerated/a.tar", "w") as tar:
        for name in ("deep/0.png", "deep/1.0.png", "deep/1.1.png", "deep/0.txt", "other.png"):
            data = encoded(Image.new("RGB", (64, 64), "red"))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert run_gallery(monkeypatch, capsys, output)[0] == 0
    page = output / "_gallery"
    assert sorted(p.name for p in page.rglob("*-r.webp")) == ["000000-r.webp", "000001-r.webp"]
    assert [r[-1] for r in rows_of(page)] == [3, 3, 1, 1, 1]


def test_images_of_a_folder_and_of_a_table_are_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], images: list[Image.Image]
) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    for i in range(3):
        images[i].save(tmp_path / f"in/deep/{i} ä.png")
    (tmp_path / "in/table.csv").write_text("url\n" + "".join(f"deep/{i} ä.png\n" for i in range(3)))
    run = run_caption(monkeypatch, capsys)
    for name, source in (("folder", "in/deep"), ("table", "in/table.csv")):
        status, out, errors = run("--input", tmp_path / source, "--output", tmp_path / name)
        assert status == 0, errors
        assert f"pez gallery {tmp_path}/{name}" in out
        assert run_gallery(monkeypatch, capsys, tmp_path / name)[0] == 0
        assert [r[-1] for r in rows_of(tmp_path / name / "_gallery")] == [1, 1, 1]


def test_a_gallery_in_the_folder_of_images_is_no_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], images: list[Image.Image]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    images[0].save(folder / "a.png")
    run = run_caption(monkeypatch, capsys)
    words = ("--input", folder, "--output", tmp_path / "out")
    assert run(*words)[0] == 0
    assert run_gallery(monkeypatch, capsys, tmp_path / "out", "--to", folder / "page")[0] == 0
    assert "nothing to do" in run(*words)[1]


def test_a_gallery_goes_into_a_store(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, errors = run_gallery(monkeypatch, capsys, output, "--to", "memory://pages/one")
    assert status == 0, errors
    assert out.splitlines()[-1] == "memory://pages/one/index.html"
    fs = fsspec.filesystem("memory")
    assert fs.exists("/pages/one/thumbs/000/000004.webp")
    assert b"</html>" in fs.cat_file("/pages/one/index.html")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{tmp}/nothing"], "no _run.json in {tmp}/nothing"),
        (["{tmp}/out", "--to", "{tmp}/mine"], "{tmp}/mine holds other files; expected a new or empty folder"),
        (["{tmp}/out", "--to", "{tmp}/out"], "--to is {tmp}/out, the output itself; expected a folder of its own"),
        (["{tmp}/out", "--sample", "0"], "--sample is 0; expected 1 to 1000000"),
        (["{tmp}/out", "--thumbnail", "5000"], "--thumbnail is 5000; expected 16 to 1024"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    output: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    given = [word.format(tmp=tmp_path) for word in words]
    status, _, errors = run_gallery(monkeypatch, capsys, *given)
    assert (status, len(errors.splitlines())) == (2, 1)
    assert message.format(tmp=tmp_path) in errors
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_an_output_without_a_finished_shard_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_output(tmp_path / "out", {})
    status, _, errors = run_gallery(monkeypatch, capsys, tmp_path / "out")
    assert status == 2
    assert "no finished shard in" in errors


def test_alternatives_other_than_the_prompt_are_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = tmp_path / "in/a.tar"
    write_tar(tar, KEYS[:2])
    columns = learned_columns(LearnSettings(), pez.PezSettings(candidates_kept=2))
    table = PromptTable(str(tmp_path / "out"), SETTINGS, columns=columns)
    table.claim()
    several = [{"prompt": "first", "similarity": 0.5}, {"prompt": "second", "similarity": 0.25}]
    rows = [row(0, KEYS[0], str(tar), prompt="second", columns={"alternatives": several}), row(1, KEYS[1], str(tar))]
    table.publish(Unit(str(tar), "a"), rows, 1.0)
    status, _, errors = run_gallery(monkeypatch, capsys, tmp_path / "out")
    assert status == 0, errors
    first, second = rows_of(tmp_path / "out/_gallery")
    assert first[15:] == [[["first", 0.5]]]
    assert second[15:] == []
