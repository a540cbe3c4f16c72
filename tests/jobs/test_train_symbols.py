"""`pez train_demo --symbols`: a CLIP of the images that are in the folder, and a shard of those that it never saw."""

import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pez
from jobs import train_demo


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """The files of the npm packages, for twelve concepts with images of three vendors."""
    modules = tmp_path / "symbols" / "node_modules"
    names = ["cat", "dog", "sun", "moon", "tree", "car", "ship", "fish", "star", "heart", "apple", "bread"]
    entries = [
        {"label": name, "hexcode": f"1F60{i:X}", "tags": [name, "thing"], "group": 1} for i, name in enumerate(names)
    ]
    folder = modules / "emojibase-data" / "en"
    folder.mkdir(parents=True)
    (folder / "data.json").write_text(json.dumps([*entries, {"label": "component", "hexcode": "1F3FB"}]))
    rng = np.random.default_rng(0)
    for path, extension in (
        ("emoji-datasource-google/img/google/64", "png"),
        ("emoji-datasource-twitter/img/twitter/64", "png"),
        ("@lobehub/fluent-emoji-3d/assets", "webp"),
    ):
        (modules / path).mkdir(parents=True)
        for entry in entries:
            pixels = rng.integers(0, 256, (64, 64, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(modules / path / f"{str(entry['hexcode']).lower()}.{extension}")
    (modules / "@lobehub/fluent-emoji-flat/assets").mkdir(parents=True)
    return tmp_path / "symbols"


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["jobs.train_demo", *words])
    with pytest.raises(SystemExit) as ended:
        train_demo.main()
    return int(ended.value.code or 0)


def test_it_trains_on_all_images_but_the_unseen_ones(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "guide"
    words = [
        "--output",
        str(out),
        "--symbols",
        str(packages),
        "--steps",
        "2",
        "--image-width",
        "8",
        "--text-width",
        "16",
    ]
    assert run(words, monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "12 concepts, 36 images, 3 of them unseen" in printed
    assert "top-5" in printed
    with tarfile.open(out / "unseen.tar") as shard:
        assert sorted(shard.getnames()) == sorted(f"{i:05d}.{kind}" for i in range(3) for kind in ("png", "txt"))
    clip = pez.load_clip(f"local-dir:{out}")
    assert clip.text_features(["a cat"]).shape == (1, 128)


def test_a_folder_without_the_packages_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--output", str(tmp_path / "out"), "--symbols", str(tmp_path)], monkeypatch) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path} has no emojibase-data/en/data.json; install the packages")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--symbols", ".", "--generator"], "--generator"),
        (["--image-width", "16"], "--image-width"),
        (["--symbols", ".", "--text-width", "30"], "--text-width is 30; expected a multiple of 4 from 8 to 4096"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    words: list[str], expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["--output", str(tmp_path / "out"), *words], monkeypatch) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert expected in line
