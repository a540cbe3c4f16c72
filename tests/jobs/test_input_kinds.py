"""`pez caption` takes tars, folders and tables: the same pictures give the same prompts, and each resumes and retries."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from caption_jobs import Run, rows_of, run_caption
from PIL import Image
from samples_on_disk import MakeTar, encoded

from jobs import command, verify

COUNT = 6


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return run_caption(monkeypatch, capsys)


@pytest.fixture
def inputs(tmp_path: Path, make_tar: MakeTar, images: list[Image.Image]) -> dict[str, list[object]]:
    """The words of the command line for the same pictures, keys and captions, by the kind of input."""
    keys = [f"deep/{i}" for i in range(COUNT)]
    data = {key: encoded(images[i]) for i, key in enumerate(keys)}
    members = [pair for key in keys for pair in ((f"{key}.png", data[key]), (f"{key}.txt", f"of {key}".encode()))]
    tar = make_tar("in/pictures.tar", members)
    for name, content in members:
        (tmp_path / "in/folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in/folder" / name).write_bytes(content)
    columns = {"id": keys, "caption": [f"of {key}" for key in keys]}
    struct = [{"bytes": data[key], "path": f"{key}.png"} for key in keys]
    pq.write_table(pa.table({"image": struct, **columns}), tmp_path / "in/images.parquet", row_group_size=2)
    lines = [json.dumps({"id": key, "file_name": f"folder/{key}.png", "caption": f"of {key}"}) for key in keys]
    (tmp_path / "in/paths.jsonl").write_text("\n".join(lines))
    return {
        "tar": ["--input", tar],
        "folder": ["--input", tmp_path / "in/folder", "--images-per-unit", 4],
        "parquet": ["--input", tmp_path / "in/images.parquet", "--key-column", "id"],
        "paths": ["--input", tmp_path / "in/paths.jsonl", "--key-column", "id"],
    }


COMPARED = ("prompt", "token_ids", "similarity", "token_similarity", "caption", "caption_similarity", "width", "height")


def compared(rows: dict[str, dict[str, Any]]) -> dict[str, list[Any]]:
    return {key: [row[name] for name in COMPARED] for key, row in rows.items()}


def test_the_same_pictures_give_the_same_prompts_from_every_kind_of_input(
    tmp_path: Path, run: Run, inputs: dict[str, list[object]]
) -> None:
    found = {}
    for kind, words in inputs.items():
        status, _, errors = run(*words, "--output", tmp_path / kind)
        assert status == 0, errors
        found[kind] = compared(rows_of(tmp_path / kind))
    assert len(found["tar"]) == COUNT
    assert all(prompt for prompt, *_ in found["tar"].values())
    for kind in ("folder", "parquet", "paths"):
        assert found[kind] == found["tar"], kind


@pytest.mark.parametrize("kind", ["folder", "parquet", "paths"])
def test_every_kind_has_parts_resume_and_a_run_with_other_settings_is_refused(
    tmp_path: Path, run: Run, inputs: dict[str, list[object]], kind: str
) -> None:
    words = [*inputs[kind], "--output", tmp_path / "out"]
    assert run(*inputs[kind], "--output", tmp_path / "whole")[0] == 0
    assert run(*words, "--parts", 3)[0] == 0
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "whole")
    status, out, _ = run(*words)
    assert (status, "nothing to do" in out) == (0, True)
    status, _, errors = run(*inputs["tar"], "--output", tmp_path / "out")
    assert status == 2
    assert "kind was" in errors


def test_retry_failed_learns_what_was_broken(tmp_path: Path, run: Run, inputs: dict[str, list[object]]) -> None:
    broken = tmp_path / "in/folder/deep/3.png"
    good = broken.read_bytes()
    broken.write_bytes(b"")
    for kind in ("folder", "paths"):
        words = [*inputs[kind], "--output", tmp_path / kind]
        assert run(*words)[0] == 0
        assert rows_of(tmp_path / kind)["deep/3"]["status"] == "bad_image"
    broken.write_bytes(good)
    for kind in ("folder", "paths"):
        assert run(*inputs[kind], "--output", tmp_path / kind, "--retry-failed")[0] == 0
        assert rows_of(tmp_path / kind)["deep/3"]["status"] == "ok"


@pytest.mark.parametrize("kind", ["folder", "parquet", "paths"])
def test_every_kind_is_verified_later(
    tmp_path: Path, run: Run, inputs: dict[str, list[object]], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*inputs[kind], "--output", tmp_path / "out")[0] == 0
    words = ["pez", tmp_path / "out", "--verify", "demo", "--verify-steps", 1, "--local"]
    monkeypatch.setattr("sys.argv", list(map(str, words)))
    with pytest.raises(SystemExit) as ended:
        command.run(verify.VerifyJob, verify.__doc__, verify.verify, "pez verify")
    assert ended.value.code == 0
    assert all(row["regenerated_similarity"] is not None for row in rows_of(tmp_path / "out").values())


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_folder_is_learned_on_ray_with_the_same_rows(
    tmp_path: Path, run: Run, inputs: dict[str, list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*inputs["folder"], "--output", tmp_path / "local")[0] == 0
    monkeypatch.setattr(
        "caption_jobs.FAST", ("--model", "demo", "--tokens", 3, "--steps", 10, "--swaps", 1, "--actors", 1)
    )
    status, out, errors = run(*inputs["folder"], "--output", tmp_path / "ray")
    assert status == 0, out + errors
    assert compared(rows_of(tmp_path / "ray")) == compared(rows_of(tmp_path / "local"))


PICTURE = encoded(Image.new("RGB", (8, 6)))


@pytest.mark.parametrize(
    ("files", "words", "message"),
    [
        (
            ["a.tar", "p/b.png"],
            ["a.tar", "p"],
            r"the input is of several kinds: tars \(.*a.tar\), folders of images \(.*p\); expected one kind per job",
        ),
        (["a.csv", "p/b.png"], ["a.csv", "p"], "several kinds: tables"),
        (
            ["p/b.png", "p/c.parquet", "p/deep/d.parquet"],
            ["p"],
            "contains 1 image and 2 Parquet tables; choose with --input-kind folder or --input-kind table",
        ),
        (
            ["p/a.pdf", "p/b.pdf", "p/c.md"],
            ["p"],
            r"no image, tar or table in .*: found 2 x .pdf, 1 x .md; expected tars \(",
        ),
        (["p/x"], ["p", "--url-column", "url"], r"--url-column has no effect on folders of images"),
        (["a.tar"], ["a.tar", "--image-column", "image"], "--image-column has no effect on tars"),
        (["p/x"], ["p", "--images-per-unit", "0"], "--images-per-unit is 0; expected 1 to 1000000"),
        (
            ["p/x"],
            ["p", "--image-column", "a", "--url-column", "b"],
            "image-column and url_column are given; expected one",
        ),
        (["a.zip"], ["a.zip", "--input-kind", "table"], "a.zip is a ZIP archive, not a table"),
        ([], ["gone"], "no file .*gone; expected a"),
    ],
    ids=range(10),
)
def test_inputs_of_several_kinds_or_of_none_are_one_line(
    tmp_path: Path, run: Run, files: list[str], words: list[str], message: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"PK\3\4" + bytes(60) if name.endswith(".zip") else PICTURE)
    given = [word if word.startswith("--") or i > 1 else str(tmp_path / word) for i, word in enumerate(words)]
    status, _, errors = run("--input", *given, "--output", tmp_path / "out")
    assert status == 2
    assert len(errors.splitlines()) == 1
    assert re.search(message, errors), errors


def test_a_folder_of_tars_and_pictures_is_its_tars_as_before(
    tmp_path: Path, make_tar: MakeTar, images: list[Image.Image], run: Run
) -> None:
    make_tar("in/a.tar", [("x.png", encoded(images[0]))])
    (tmp_path / "in/beside.png").write_bytes(encoded(images[1]))
    status, out, _ = run("--input", tmp_path / "in", "--output", tmp_path / "out")
    assert (status, list(rows_of(tmp_path / "out"))) == (0, ["x"])
    assert "left out: 1 file" in out
    assert run("--input", tmp_path / "in", "--output", tmp_path / "other", "--input-kind", "folder")[0] == 0
    assert list(rows_of(tmp_path / "other")) == ["beside"]
