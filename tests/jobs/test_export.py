"""`pez export` as a command: what it keeps, leaves out, resumes and refuses."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from caption_jobs import run_caption
from export_jobs import run_export, write_shards
from gallery_outputs import row, write_output
from PIL import Image
from samples_on_disk import MakeTar, encoded

from pipeline.exports.names import path_of
from pipeline.exports.settings import ExportSettings


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: object, local: bool = True) -> tuple[int, str, str]:
        return run_export(monkeypatch, capsys, tmp_path / "out", *words, local=local)

    return run


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


PNG = encoded(Image.new("RGB", (64, 64), "red"))


def test_all_members_of_a_key_are_kept_and_the_text_replaced(make_tar: MakeTar, tmp_path: Path, export: Any) -> None:
    tar = make_tar(
        "in/a.tar",
        [
            ("a.png", PNG),
            ("a.txt", b"old"),
            ("a.cls", b"7"),
            ("a.meta.json", b"{}"),
            ("b.1.png", PNG),
            ("b.1.cls", b"8"),
        ],
    )
    write_output(tmp_path / "out", {tar: [row(0, "a", tar, prompt="red cat"), row(1, "b.1", tar, prompt="tree")]})
    assert export("--format", "webdataset")[0] == 0
    found = members(tmp_path / "out-webdataset" / "a.tar")
    assert found["a.txt"] == b"red cat"
    assert (found["a.png"], found["a.cls"], found["a.meta.json"]) == (PNG, b"7", b"{}")
    other = path_of("b.1", dots=False)  # a WebDataset ends its key at the first dot
    assert other.startswith("b_1-")
    assert {name for name in found if name.startswith("b")} == {f"{other}.{e}" for e in ("png", "cls", "txt")}


def test_captions_away_from_their_images_are_counted(make_tar: MakeTar, tmp_path: Path, export: Any) -> None:
    tar = make_tar("in/a.tar", [("a.txt", b"1"), ("b.txt", b"2"), ("a.png", PNG), ("b.png", PNG), ("b.cls", b"3")])
    write_output(tmp_path / "out", {tar: [row(0, "a", tar), row(1, "b", tar)]})
    status, output, _ = export("--format", "webdataset")
    assert status == 0
    assert sorted(members(tmp_path / "out-webdataset" / "a.tar")) == ["a.png", "a.txt", "b.cls", "b.png", "b.txt"]
    assert "left out: members: away from the image of their key: 2" in output


def test_a_share_of_the_rows_takes_its_caption(tmp_path: Path, export: Any) -> None:
    write_shards(tmp_path, units=1, images=40)
    words = ("--format", "jsonl", "--mix", "caption:0.5", "--template", "a photo, {}")
    assert export(*words)[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "out-jsonl" / "shard-0.jsonl").read_text().splitlines()]
    of_captions = [line for line in lines if line["text"] == f"a photo, {line['caption']}"]
    assert 10 < len(of_captions) < 30
    assert all(line["text"] == f"a photo, {line['prompt']}" for line in lines if line not in of_captions)


def test_rows_below_a_similarity_are_left_out(tmp_path: Path, export: Any) -> None:
    table = write_shards(tmp_path, units=1, images=20)
    status, output, _ = export("--format", "csv", "--min-similarity", 0.3)
    rows = table.read(table.shards()[0]).to_pylist()
    enough = [r["key"] for r in rows if r["similarity"] is not None and r["similarity"] >= 0.3]
    assert 0 < len(enough) < 19
    assert status == 0
    assert f"left out: similarity below 0.3: {19 - len(enough)}" in output
    assert len((tmp_path / "out-csv" / "shard-0.csv").read_text().splitlines()) == 1 + len(enough)


def test_a_second_run_resumes_and_other_settings_are_refused(tmp_path: Path, export: Any) -> None:
    write_shards(tmp_path, units=2)
    words = ("--format", "webdataset")
    assert export(*words)[0] == 0
    shard = tmp_path / "out-webdataset" / "shard-0.tar"
    before, written = shard.read_bytes(), shard.stat().st_mtime_ns
    (tmp_path / "out-webdataset.pez" / "_exported" / "shard-1.json").unlink()
    status, output, _ = export(*words)
    assert status == 0
    assert "2/2 shards" in output
    assert (shard.read_bytes(), shard.stat().st_mtime_ns) == (before, written), "it was done"
    assert "nothing to do: all 2 shards are exported" in export(*words)[1]
    status, _, errors = export(*words, "--template", "a {}")
    assert status == 2
    assert "is an export with other settings: template was not set and is 'a {}'; choose another --to" in errors


def test_prompts_that_were_redone_are_exported_again(tmp_path: Path, export: Any) -> None:
    table = write_shards(tmp_path, units=1)
    assert export("--format", "jsonl")[0] == 0
    [unit] = table.shards()
    table.publish(unit, [row(0, "0000", unit.url, prompt="quite another")], 3.0)
    assert export("--format", "jsonl")[0] == 0
    assert "quite another" in (tmp_path / "out-jsonl" / "shard-0.jsonl").read_text()


def test_a_missing_tar_fails_alone(tmp_path: Path, export: Any) -> None:
    write_shards(tmp_path, units=2)
    (tmp_path / "in" / "shard-0.tar").unlink()
    status, output, _ = export("--format", "sidecar", "--attempts", 1)
    assert status == 1
    assert "1 of 2 shards failed" in output
    assert "_failures/shard-0.txt" in output
    assert len(list((tmp_path / "out-sidecar" / "shard-1").glob("*.txt"))) == 5
    assert not (tmp_path / "out-sidecar.pez" / "_SUCCESS").exists()


HOSTILE = ["../../up", "/etc/abs", "a/../b", ".hidden", 'x<y>:"z|?*', "a\nb", "long" * 100, "dir/", "ü/ñ", "CON.x"]


def test_no_key_leaves_the_folder_and_all_stay_distinct(tmp_path: Path) -> None:
    for dots in (True, False):
        paths = [path_of(key, dots) for key in [*HOSTILE, "up", "a/b", "a_b", "a.b"]]
        assert len(set(paths)) == len(paths)
        for path in paths:
            assert (tmp_path / path).resolve().is_relative_to(tmp_path)
            assert not any(part.startswith(".") or not part or len(part.encode()) > 255 for part in path.split("/"))
    assert path_of("photos/2019/a.1") == "photos/2019/a.1"


def test_hostile_keys_are_exported_below_the_folder(make_tar: MakeTar, tmp_path: Path, export: Any) -> None:
    tar = make_tar("in/a.tar", [(f"{key}.png", PNG) for key in HOSTILE[:3]])
    write_output(tmp_path / "out", {tar: [row(i, key, tar) for i, key in enumerate(HOSTILE[:3])]})
    assert export("--format", "sidecar")[0] == 0
    found = files(tmp_path / "out-sidecar")
    assert len(found) == 6
    assert all(name.startswith("a/") for name in found)
    assert not (tmp_path / "up.png").exists()


def test_a_folder_keeps_its_tree_as_links_or_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], export: Any
) -> None:
    for name in ("10_cats/a.png", "10_cats/b b.PNG", "c.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(PNG)
    caption = run_caption(monkeypatch, capsys)
    assert caption("--input", tmp_path / "photos", "--output", tmp_path / "out", "--images-per-unit", 2)[0] == 0
    assert export("--format", "sidecar", "--link", "--to", tmp_path / "links")[0] == 0
    expected = ["10_cats/a.png", "10_cats/a.txt", "10_cats/b b.png", "10_cats/b b.txt", "c.png", "c.txt"]
    assert files(tmp_path / "links") == expected
    assert (tmp_path / "links" / "10_cats" / "b b.png").readlink() == tmp_path / "photos" / "10_cats" / "b b.PNG"
    assert export("--format", "sidecar", "--to", tmp_path / "copies")[0] == 0
    assert files(tmp_path / "copies") == expected
    assert not (tmp_path / "copies" / "c.png").is_symlink()
    assert export("--format", "webdataset", "--to", tmp_path / "tars")[0] == 0
    assert sum(json.loads((tmp_path / "tars" / "sizes.json").read_text()).values()) == 3


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--format", "jpg"), "--format"),
        ((), "the following arguments are required: --format"),
        (("--format", "csv", "--template", "a photo"), "--template is 'a photo'; expected exactly one {}"),
        (("--format", "csv", "--mix", "caption"), "--mix is 'caption'; expected a column and a share from 0 to 1"),
        (("--format", "csv", "--mix", "caption:0.7", "prompt:0.7"), "expected shares that add up to at most 1"),
        (
            ("--format", "csv", "--prompt-field", "width"),
            "--prompt-field names 'width'; expected a column of texts: key,",
        ),
        (("--format", "csv", "--min-similarity", "30"), "--min-similarity is 30; expected -1 to 1"),
        (("--format", "csv", "--link"), "--link applies to --format sidecar, not to csv"),
        (("--format", "sidecar", "--link"), "--link needs images in a local folder; the input is of another kind"),
        (("--format", "csv", "--gpus-per-actor", "1"), "--gpus-per-actor has no effect with --local"),
        (("--format", "csv", "--to", "/"), "--to is /, the root of the file system"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(
    tmp_path: Path, export: Any, words: tuple[object, ...], expected: str
) -> None:
    write_shards(tmp_path, units=1)
    status, _, errors = export(*words)
    assert status == 2
    assert expected in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "out-csv").exists()


def test_another_programs_folder_is_left_alone(tmp_path: Path, export: Any) -> None:
    write_shards(tmp_path, units=1)
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "mine.txt").write_text("mine")
    status, _, errors = export("--format", "csv", "--to", tmp_path / "to")
    assert status == 2
    assert "holds other files; expected a new or empty folder" in errors


def test_the_name_of_a_mixed_column_may_have_a_colon() -> None:
    shares = ExportSettings("csv", mix=("a:b:0.25",)).shares
    assert shares == {"a:b": 0.25}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_on_ray_the_same_files_come_out(tmp_path: Path, export: Any) -> None:
    write_shards(tmp_path, units=3)
    assert export("--format", "webdataset", "--to", tmp_path / "here")[0] == 0
    status, output, errors = export("--format", "webdataset", "--to", tmp_path / "ray", "--actors", 1, local=False)
    assert status == 0, errors
    assert "15 rows in" in output
    assert files(tmp_path / "ray") == files(tmp_path / "here")
    for name in files(tmp_path / "ray"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
