"""Images that `pez invert` takes: files, patterns, ~, URLs; what it does not take is one line that says what to do."""

import re
from pathlib import Path

import pytest
from samples_on_disk import encoded
from weak_server import WeakServer

from jobs import invert
from pez.errors import UserError


@pytest.fixture
def folder(images: list, tmp_path: Path) -> Path:
    for i in range(3):
        images[i].save(tmp_path / f"{i}.png")
    return tmp_path


def names(*given: str) -> list[str]:
    found, images = invert._read(given)
    assert len(images) == len(found)
    assert all(image.mode == "RGB" for image in images)
    return found


def test_files_patterns_and_the_home_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert names(f"{folder}/0.png", f"{folder}/[12].png", "~/1.png", "~/*.png") == [
        *("0.png", "1.png", "2.png"), "1.png", *("0.png", "1.png", "2.png"),
    ]  # fmt: skip


def test_a_name_with_a_bracket_is_a_name(images: list, tmp_path: Path) -> None:
    images[0].save(tmp_path / "a[1].png")
    assert names(f"{tmp_path}/a[1].png") == ["a[1].png"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_url_is_read(images: list, ranges: bool) -> None:
    with WeakServer({"a%20b/photo.png": encoded(images[0])}, ranges=ranges).running() as server:
        assert names(f"{server.url}/a%20b/photo.png") == ["photo.png"]


def test_a_signed_url_is_read_and_its_secret_is_not_shown(images: list) -> None:
    with WeakServer({"a.png?X-Amz-Signature=SECRET": encoded(images[0])}).running() as server:
        assert names(f"{server.url}/a.png?X-Amz-Signature=SECRET") == ["a.png"]
        with pytest.raises(UserError) as refused:
            names(f"{server.url}/b.png?X-Amz-Signature=SECRET")
    assert f"cannot read {server.url}/b.png: " in str(refused.value)
    assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "{tmp}",
            "{tmp} is a folder; expected image files, such as {tmp}/*.jpg, or, for a prompt for each image of the folder, "
            "pez caption --input {tmp} --output OUT",
        ),
        ("{tmp}/gone.png", "cannot read {tmp}/gone.png: No such file or directory"),
        ("{tmp}/gone-*.png", "no file matches {tmp}/gone-*.png; expected image files"),
        ("{tmp}/text.png", "{tmp}/text.png: cannot decode the image"),
        ("{tmp}/empty.png", "{tmp}/empty.png: "),
        ("/dev/zero", "/dev/zero is not a file; expected an image file"),
        ("nonsense://x/y.png", "nonsense://x/y.png"),
        (
            "http://127.0.0.1:9/a.png",
            "cannot read http://127.0.0.1:9/a.png: nothing is there, or the server does not answer",
        ),
    ],
)
def test_what_is_no_image_is_one_line(given: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(UserError, match=re.escape(message.format(tmp=tmp_path))) as refused:
        names(given.format(tmp=tmp_path))
    assert "\n" not in str(refused.value)
