"""An output that an earlier version began is refused in one line, and not changed: prompts of two versions are never mixed."""

import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image
from samples_on_disk import MakeTar, encoded

from jobs import caption, verify

EARLIER = Path(__file__).parent / "earlier_output"
SETTINGS = ["--model", "demo", "--steps", "20", "--swaps", "4", "--local"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Half of a job with two shards, in which `{shard}` stands for the path of the first."""
    shutil.copytree(EARLIER, tmp_path / "out")
    for file in (tmp_path / "out").rglob("*.json"):
        file.write_text(file.read_text().replace("{shard}", str(tmp_path / "in" / "scenes-00000.tar")))
    return tmp_path / "out"


@pytest.fixture
def tars(make_tar: MakeTar, images: list[Image.Image]) -> list[str]:
    return [make_tar(f"in/scenes-0000{i}.tar", [("a.png", encoded(images[i]))]) for i in range(2)]


def run(
    job: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[str]]:
    monkeypatch.setattr(sys, "argv", [f"jobs.{job}", *words])
    with pytest.raises(SystemExit) as ended:
        {"caption": caption, "verify": verify}[job].main()
    return int(ended.value.code or 0), capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("more", [(), ("--steps", "30")])
def test_it_is_refused_because_the_same_settings_give_other_prompts(
    out: Path,
    tars: list[str],
    more: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    words = ["--input", *tars, "--output", str(out), *SETTINGS, *more]
    status, [line] = run("caption", words, monkeypatch, capsys)
    assert status == 2
    assert line.endswith(
        "was written by another version of this project, which learns different prompts; finish it with that version, or "
        "choose another --output"
    )
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_its_verification_is_not_mixed_with_ours(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(out), "--verify", "demo", "--verify-steps", "2", "--local"]
    status, [line] = run("verify", words, monkeypatch, capsys)
    assert status == 2
    assert "was verified by an earlier version of this project" in line
