"""Exports are what the programs that people train with read."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from export_jobs import run_export, write_shards

ROWS = 10  # with a prompt, of 12


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    write_shards(tmp_path)

    def run(*words: object) -> Path:
        status, _, errors = run_export(monkeypatch, capsys, tmp_path / "out", "--to", tmp_path / "to", *words)
        assert status == 0, errors
        return tmp_path / "to"

    return run


def test_webdataset_groups_every_image_with_its_prompt(export: Any) -> None:
    import webdataset as wds

    folder = export("--format", "webdataset", "--template", "a photo, {}")
    assert json.loads((folder / "sizes.json").read_text()) == {"shard-0.tar": 5, "shard-1.tar": 5}
    shards = [str(folder / f"shard-{unit}.tar") for unit in range(2)]
    found = list(wds.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("__key__", "png", "txt"))
    assert [key for key, _, _ in found] == [f"{unit}{index:03d}" for unit in range(2) for index in range(5)]
    assert {image.size for _, image, _ in found} == {(400, 300)}
    assert all(text.startswith("a photo, prompt ") for _, _, text in found)


# open_clip asks for webdataset < 0.3; later ones end each tar with an empty sample, which it does not know.
TRAINING = """
import sys
from functools import partial

import open_clip
import open_clip_train.data
import open_clip_train.main
from webdataset.tariterators import tar_file_expander

open_clip_train.data.tar_file_expander = partial(tar_file_expander, eof_value=None)
open_clip.add_model_config(sys.argv[1])
open_clip_train.main.main(sys.argv[2:])
"""


def test_open_clip_takes_a_training_step(export: Any, tmp_path: Path) -> None:
    """In a process of its own: the trainer changes the level of every logger and never restores it."""
    pytest.importorskip("open_clip_train", reason="open_clip_torch without its trainer")
    folder = export("--format", "webdataset")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
    }
    (tmp_path / "tiny-clip.json").write_text(json.dumps(config))
    words = f"--train-data {folder}/shard-{{0..1}}.tar --dataset-type webdataset --model tiny-clip --batch-size 5"
    words += f" --epochs 1 --workers 0 --logs {tmp_path / 'logs'} --name one --device cpu --log-every-n-steps 1"
    train = [sys.executable, "-c", TRAINING, str(tmp_path / "tiny-clip.json"), *words.split()]
    done = subprocess.run(train, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "logs" / "one" / "out.log").read_text()
    assert f"Train Epoch: 0 [{ROWS}/10" in log, log
    assert (tmp_path / "logs" / "one" / "checkpoints" / "epoch_1.pt").exists()


def test_sidecars_lie_beside_their_images(export: Any) -> None:
    from PIL import Image

    folder = export("--format", "sidecar")
    texts = sorted(folder.rglob("*.txt"))
    assert [path.relative_to(folder).as_posix() for path in texts[:2]] == ["shard-0/0000.txt", "shard-0/0001.txt"]
    assert len(texts) == ROWS
    assert all(path.read_text().startswith("prompt ") for path in texts)
    assert {Image.open(path.with_suffix(".png")).size for path in texts} == {(400, 300)}
    assert len(list(folder.rglob("*.*"))) == 2 * ROWS, "nothing else"


def test_datasets_reads_the_image_folder(export: Any, tmp_path: Path) -> None:
    import datasets

    folder = export("--format", "imagefolder")
    datasets.disable_progress_bars()
    found = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    assert found.num_rows == ROWS
    assert {"image", "text", "similarity"} <= set(found.column_names)
    assert found[0]["image"].size == (400, 300)
    assert {row["key"]: row["text"] for row in found}["1004"].startswith("prompt ")


def test_datasets_reads_the_data_set_with_its_card(export: Any, tmp_path: Path) -> None:
    import datasets
    from huggingface_hub import DatasetCard

    folder = export("--format", "datasets", "--min-similarity", -1)
    datasets.disable_progress_bars()
    found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    assert isinstance(found.features["image"], datasets.Image)
    assert found.num_rows == ROWS
    assert found[0]["image"].size == (400, 300)
    card = DatasetCard.load(folder / "README.md")
    assert card.data.size_categories == ["n<1K"]
    assert "min_similarity" in card.text
    assert "2 rows: without a prompt (bad_image)" in card.text
    found.save_to_disk(tmp_path / "again")  # what push_to_hub uploads is made in the same way
    assert datasets.load_from_disk(tmp_path / "again").num_rows == ROWS


READERS: dict[str, Any] = {
    "duckdb": lambda glob: __import__("duckdb").sql(f"select text from '{glob}'").fetchall(),
    "pandas": lambda glob: [
        row for one in sorted(Path(glob).parent.glob(Path(glob).name)) for row in _pandas(one)
    ],
    "polars": lambda glob: (
        __import__("polars").read_csv(glob) if glob.endswith("csv") else __import__("polars").read_ndjson(glob)
    )["text"].to_list(),
}  # fmt: skip


def _pandas(path: Path) -> list[str]:
    import pandas as pd

    table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_json(path, lines=True)
    return list(table["text"])


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_table_readers_read_rows_without_images(export: Any, kind: str) -> None:
    folder = export("--format", kind)
    for reader, read in READERS.items():
        assert len(read(f"{folder}/*.{kind}")) == ROWS, reader


def test_the_export_holds_only_files_of_its_format(export: Any) -> None:
    folder = export("--format", "jsonl")
    assert sorted(path.name for path in folder.iterdir()) == ["shard-0.jsonl", "shard-1.jsonl"]
    assert (folder.parent / "to.pez" / "_SUCCESS").exists()
