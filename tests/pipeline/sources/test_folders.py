"""A folder of images: every picture file has a row, whatever its name; a listing is kept, and nothing is lost silently."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import fsspec
import pytest
from caption_jobs import Run, rows_of, run_caption
from PIL import Image
from samples_on_disk import encoded

from pipeline.folder import OutputFolder
from pipeline.settings import CaptionSettings
from pipeline.sources import image_files
from pipeline.sources.base import Item, UnitError
from pipeline.sources.folders import FolderSource, ImageList, list_name
from pipeline.sources.found import Found
from pipeline.sources.image_inputs import find_images

PNG = encoded(Image.new("RGB", (8, 6), (200, 30, 30)))
JPEG = encoded(Image.new("RGB", (8, 6), (30, 30, 200)), "JPEG")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return run_caption(monkeypatch, capsys)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "WAITS", (0.0, 0.0))


def fill(folder: Path, **files: bytes) -> Path:
    return put(folder, {name: data for name, data in files.items()})


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
    return folder


def find(*patterns: object, out: Path, left_out: Counter[str] | None = None, **settings: object) -> Found:
    """Find units and record their lists, as a job does."""
    output = OutputFolder(str(out))
    chosen = CaptionSettings(model="demo", **settings)  # type: ignore[arg-type]
    found = find_images([str(p) for p in patterns], output, chosen, Counter() if left_out is None else left_out)
    found.record(output)
    return found


def items(found: Found, left_out: Counter[str] | None = None) -> dict[str, Item]:
    source = FolderSource(found.settings.image_key, found.settings.caption_key, found.settings.key_split)
    read = [item for unit in found.units for item in source.read(unit, left_out)]
    assert len({item.key for item in read}) == len(read)
    return {item.key: item for item in read}


def test_every_picture_file_has_a_row_whatever_its_name(tmp_path: Path, run: Run) -> None:
    folder = put(
        tmp_path / "pictures",
        {
            **{
                "a.png": PNG,
                "deep/er/b.jpg": JPEG,
                "with space .png": PNG,
                "ünï/日本.png": PNG,
                "line\nbreak.png": PNG,
            },
            **{"UPPER.PNG": PNG, "photo.1.jpg": JPEG, "photo.2.jpg": JPEG, "no extension": PNG, "photo.17": JPEG},
            **{"a::b.jpg": JPEG, "50%#?&*[x].png": PNG, "x.jfif": JPEG, "x.jpe": JPEG, "twitter.jpg_large": JPEG},
            **{"_DSC1.jpg": JPEG, "wrong.gif": PNG, "-rf.png": PNG, "trailing..png": PNG},
            "bad\udcff.png": PNG,
        },
    )
    status, out, errors = run("--input", folder, "--output", tmp_path / "out")
    assert status == 0, errors
    rows = rows_of(tmp_path / "out")
    assert sorted(rows) == sorted(
        [
            *("a", "deep/er/b", "with space ", "ünï/日本", "line\nbreak", "UPPER", "photo.1", "photo.2"),
            *("no extension", "photo.17", "a::b", "50%#?&*[x]", "x.jfif", "x.jpe", "twitter.jpg_large", "_DSC1"),
            *("wrong", "-rf", "trailing.", "bad\\xff"),
        ]
    )
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert "left out" not in out


def test_a_picture_that_cannot_be_read_has_a_row_with_the_reason(tmp_path: Path) -> None:
    files = {
        "empty.jpg": b"",
        "broken.png": PNG[:50],
        "text.jpg": b"hello",
        "drawing.svg": b"<svg/>",
        "raw.NEF": b"II*\0",
    }
    folder = put(tmp_path / "in", {**files, "real.png": PNG})
    (folder / "link.png").symlink_to("real.png")
    (folder / "dead.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    found = items(find(folder, out=tmp_path / "out"))
    assert sorted(found) == sorted(["empty", "broken", "text", "drawing", "raw", "real", "link", "dead", "pipe"])
    assert found["empty"].reason == "the file is empty"
    assert found["dead"].reason == "a link to 'nowhere.png', which is not there"
    assert found["pipe"].reason == "it is not a regular file; expected an image file"
    assert found["link"].image == PNG


def test_a_file_that_may_not_be_read_has_a_row_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "in", **{"secret.png": PNG, "open.png": PNG})
    (folder / "secret.png").chmod(0)
    if os.access(folder / "secret.png", os.R_OK):  # root may read anything

        def refusing(path: str, *options: object) -> object:
            if str(path).endswith("secret.png"):
                raise PermissionError(13, "Permission denied")
            return open(path, *options)  # type: ignore[call-overload]

        monkeypatch.setattr(image_files, "open", refusing, raising=False)
    found = items(find(folder, out=tmp_path / "out"))
    assert (found["secret"].status, found["secret"].reason) == ("bad_image", "Permission denied")
    assert found["open"].status == "ok"


def test_what_is_no_image_or_hidden_is_counted_on_the_terminal(tmp_path: Path, run: Run) -> None:
    files = {"a.png": PNG, ".hidden.png": PNG, "._a.png": PNG, ".git/x.png": PNG, "__MACOSX/a.png": PNG}
    more = {"Thumbs.db": b"x", "notes.md": b"x", "deep/movie.mp4": b"x", "README": b"x", "lonely.txt": b"x"}
    folder = put(tmp_path / "in", {**files, **more})
    status, out, _ = run("--input", folder, "--output", tmp_path / "out")
    assert status == 0
    assert list(rows_of(tmp_path / "out")) == ["a"]
    [line] = [line for line in out.splitlines() if line.startswith("left out")]
    assert line.startswith("left out: 9 files (hidden 5, ")
    for reason in (
        "no images (.md) 1",
        "no images (.mp4) 1",
        "no images (no extension) 1",
        "captions without an image 1",
    ):
        assert reason in line


def test_links_to_folders_are_entered_and_circles_end(tmp_path: Path) -> None:
    fill(tmp_path / "disk", **{"a.png": PNG})
    folder = fill(tmp_path / "in", **{"b.png": PNG})
    (folder / "linked").symlink_to(tmp_path / "disk")
    (folder / "loop").symlink_to(folder)
    assert sorted(items(find(folder, out=tmp_path / "out"))) == ["b", "linked/a"]


def test_images_of_one_stem_each_have_a_key(tmp_path: Path) -> None:
    names = ("a.jpg", "a.png", "b.jpg", "c.jpg", "c.jpg.png", "c.png", "A.jpg")
    found = find(put(tmp_path / "in", dict.fromkeys(names, PNG)), out=tmp_path / "out")
    assert sorted(items(found)) == sorted(["a.jpg", "a.png", "b", "c.jpg", "c.jpg.png", "c.png", "A"])


def test_a_text_beside_an_image_is_its_caption(tmp_path: Path) -> None:
    files = {"a.png": PNG, "a.txt": "ein Bär\n".encode(), "b.png": PNG, "b.png.txt": b"of b.png", "b.txt": b"of b"}
    more = {"c.png": PNG, "c.jpg": JPEG, "c.txt": b"of both", "d.png": PNG, "d.txt": "wide".encode("utf-16")}
    left_out: Counter[str] = Counter()
    found = items(find(put(tmp_path / "in", {**files, **more}), out=tmp_path / "out", left_out=left_out))
    captions = {key: item.caption for key, item in found.items()}
    both = {"c.jpg": "of both", "c.png": "of both"}
    assert captions == {"a": "ein Bär", "b": "of b.png", **both, "d": "wide"}
    assert left_out == {"another caption of its image": 1}


def test_extensions_may_be_named_as_for_tars(tmp_path: Path) -> None:
    data = json.dumps({"text": "of json"}).encode()
    files = {"a.jpg": JPEG, "a.mask.png": PNG, "a.json": data, "b.jpg": JPEG, "b.json": b"{", "c.png": PNG}
    left_out: Counter[str] = Counter()
    options = {"image_key": "jpg", "caption_key": "json:text"}
    found = find(put(tmp_path / "in", files), out=tmp_path / "out", left_out=left_out, **options)
    lost: Counter[str] = Counter()
    assert {key: item.caption for key, item in items(found, lost).items()} == {"a": "of json", "b": None}
    assert (left_out, lost) == ({"no images (.png)": 2}, {"captions that are not JSON": 1})


def test_units_are_of_so_many_files_and_a_listing_is_kept(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", {f"{i:02d}.png": PNG for i in range(7)})
    first = find(folder, out=tmp_path / "out", images_per_unit=3)
    assert [unit.stem for unit in first.units] == ["in-00000", "in-00001", "in-00002"]
    assert [unit.url for unit in first.units] == [f"{folder}#{i:05d}" for i in range(3)]
    again = find(folder, out=tmp_path / "out", images_per_unit=5)
    assert again.units == first.units, "a resume has the same units"
    assert (again.lists, again.notes) == ((), ())


def test_files_that_are_added_become_new_units_and_those_that_go_have_a_reason(tmp_path: Path, run: Run) -> None:
    folder = put(tmp_path / "in", {f"{i:02d}.png": PNG for i in range(4)})
    words = ("--input", folder, "--output", tmp_path / "out", "--images-per-unit", 3)
    assert run(*words)[0] == 0
    before = rows_of(tmp_path / "out")
    put(folder, {"000.png": PNG, "new/04.png": PNG, "01.jpg": JPEG})
    (folder / "00.png").unlink()
    status, out, errors = run(*words)
    assert status == 0, errors
    assert f"{folder} has 3 new images, in 1 more unit" in out.replace("\n", "")
    after = rows_of(tmp_path / "out")
    assert set(after) - set(before) == {"000", "new/04", "01.jpg"}
    assert {key: after[key] for key in before} == before, "what was learned stays"
    status, out, _ = run(*words)
    assert (status, "nothing to do" in out) == (0, True)


def test_a_file_that_is_gone_when_its_unit_is_read_has_a_row(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", **{"a.png": PNG, "b.png": PNG})
    found = find(folder, out=tmp_path / "out")
    (folder / "a.png").unlink()
    assert items(found)["a"].reason == "there is no such file"
    shutil.rmtree(folder)
    with pytest.raises(UnitError, match="there is no folder .*in on this machine"):
        items(found)


def test_two_runs_that_list_other_files_at_once_do_not_mix(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", **{"a.png": PNG})
    output, settings = OutputFolder(str(tmp_path / "out")), CaptionSettings(model="demo")
    one = find_images([str(folder)], output, settings, Counter())
    fill(folder, **{"b.png": PNG})
    other = find_images([str(folder)], output, settings, Counter())
    one.record(output)
    one.record(output)
    with pytest.raises(RuntimeError, match="another run has listed .* and found different files"):
        other.record(output)


def test_globs_and_single_images_are_units_of_their_folder(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", {"x/a.png": PNG, "x/b.jpg": JPEG, "y/c.jpg": JPEG, "y/notes.md": b"x"})
    assert sorted(items(find(folder / "**/*.jpg", out=tmp_path / "1"))) == ["x/b", "y/c"]
    found = find(folder / "x/a.png", folder / "x/b.jpg", folder / "y/c.jpg", out=tmp_path / "2")
    assert [unit.url for unit in found.units] == [f"{folder}/x#00000", f"{folder}/y#00000"]
    assert sorted(items(found)) == ["a", "b", "c"]


def test_a_file_below_two_folders_that_are_named_has_one_row(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", {"a.png": PNG, "sub/b.png": PNG})
    found = find(folder, folder / "sub", out=tmp_path / "out")
    assert sorted(items(found)) == ["a", "sub/b"]
    later = find(folder / "sub", out=tmp_path / "out")
    assert later.units == found.units, "the unit that has it"


def test_folders_of_one_name_have_stems_of_their_own(tmp_path: Path) -> None:
    for name in ("x", "y"):
        fill(tmp_path / name / "photos", **{"a.png": PNG})
    found = find(tmp_path / "x/photos", tmp_path / "y/photos", out=tmp_path / "out")
    stems = [unit.stem for unit in found.units]
    assert stems[0] == "photos-00000"
    assert len(set(stems)) == 2


def test_an_output_in_the_folder_is_no_input(tmp_path: Path, run: Run) -> None:
    folder = fill(tmp_path / "in", **{"a.png": PNG})
    for _ in range(2):
        status, out, errors = run("--input", folder, "--output", folder / "out", "--bookkeeping", "beside")
        assert status == 0, errors
    assert "nothing to do" in out


def test_a_folder_of_a_store_is_as_one_on_a_disk(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    files = {"a.png": PNG, "a.txt": b"of a", "deep/b.jpg": JPEG, ".x.png": PNG, "empty.png": b"", "noext": PNG}
    for name, data in {**files, "n.md": b"x"}.items():
        fs.pipe_file(f"/photos-of-store/{name}", data)
    left_out: Counter[str] = Counter()
    found = find("memory://photos-of-store", out=tmp_path / "out", left_out=left_out)
    read = items(found)
    assert {key: item.caption for key, item in read.items()} == {
        "a": "of a",
        "deep/b": None,
        "empty": None,
        "noext": None,
    }
    assert read["empty"].reason == "the file is empty"
    assert left_out == {"hidden": 1, "no images (.md)": 1}


def test_a_store_that_is_down_fails_the_unit_and_makes_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    for i in range(40):
        fs.pipe_file(f"/store-that-fails/{i:02d}.png", PNG)
    found = find("memory://store-that-fails", out=tmp_path / "out")

    def fails(self: object, path: str, **_: object) -> bytes:
        raise OSError("out of order")

    monkeypatch.setattr(type(fs), "cat_file", fails)
    with pytest.raises(
        UnitError, match=r"16 files in a row cannot be reached, the last with: out of order \(3 attempts\)"
    ):
        items(found)


def test_a_list_that_is_damaged_or_gone_is_one_line(tmp_path: Path) -> None:
    found = find(fill(tmp_path / "in", **{"a.png": PNG}), out=tmp_path / "out")
    path = tmp_path / "out" / list_name(found.units[0].url)
    assert ImageList.read(path.read_bytes()).images[0].key == "a"
    path.write_bytes(b"{}\n")
    with pytest.raises(UnitError, match="the list of files of .*in#00000 is damaged"):
        items(found)
    path.unlink()
    with pytest.raises(UnitError, match="cannot read the list of files of .*in#00000"):
        items(found)
