"""The commands as people run them: output, exit status, one-line errors."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from running import ROOT
from samples_on_disk import MakeTar, encoded

from jobs import caption, command, invert

Run = Callable[..., subprocess.CompletedProcess[str]]


def job(*words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The same in this process, which has imported all."""
    jobs: dict[str, tuple[type[Any], str | None, Callable[[Any], int]]] = {
        "jobs.caption": (caption.CaptionJob, caption.__doc__, caption.caption),
        "jobs.invert": (invert.InvertJob, invert.__doc__, invert.invert),
    }

    def run(name: str, *words: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            command.run(*jobs[name])
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(sys.argv, ended.value.code, *capsys.readouterr())

    return run


def rows(folder: Path) -> list[dict]:
    return pq.read_table(folder).sort_by("key").to_pylist()


def test_the_demo_ends_with_tables_and_shows_prompts(tmp_path: Path) -> None:
    few = ["--steps", 10, "--swaps", 2, "--tokens", 4]
    done = job("jobs.caption", "--demo", "--output", tmp_path / "out", *few, env={"XDG_CACHE_HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "_SUCCESS").exists()
    table = rows(tmp_path / "out")
    assert len({row["key"] for row in table}) == len(table) == 64
    assert {row["status"] for row in table} == {"ok"}
    assert "similarity" in done.stdout
    assert table[0]["prompt"].split()[0] in done.stdout
    assert "4/4 shards  64 images" in done.stdout


def test_a_killed_job_goes_on_where_it_stopped(make_tar: MakeTar, images: list, tmp_path: Path, here: Run) -> None:
    for t in range(6):
        make_tar(f"in/{t}.tar", [(f"{t}-{i}.png", encoded(images[4 * t + i])) for i in range(4)])
    words = ["jobs.caption", "--input", tmp_path / "in", "--model", "demo", "--steps", 60, "--swaps", 4, "--local"]
    undisturbed = here(*words, "--output", tmp_path / "whole")
    assert undisturbed.returncode == 0, undisturbed.stderr

    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, words), "--output", str(out)], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    while len(list(out.glob("_reports/*.json"))) < 2:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {p.name: p.stat().st_mtime_ns for p in out.glob("_reports/*.json")}
    assert 2 <= len(finished) < 6
    assert not (out / "_SUCCESS").exists()

    again = here(*words, "--output", out)
    assert again.returncode == 0, again.stderr
    assert (out / "_SUCCESS").exists()
    assert rows(out) == rows(tmp_path / "whole")
    assert {name: (out / "_reports" / name).stat().st_mtime_ns for name in finished} == finished


def test_failed_shards_are_listed_and_the_status_is_1(
    make_tar: MakeTar, images: list, tmp_path: Path, here: Run
) -> None:
    make_tar("in/good.tar", [("1.png", encoded(images[0]))])
    (tmp_path / "in" / "bad.tar").write_bytes(b"not a tar")
    done = here(
        "jobs.caption",
        "--input",
        tmp_path / "in",
        "--output",
        tmp_path / "out",
        "--model",
        "demo",
        "--steps",
        2,
        "--local",
    )
    assert done.returncode == 1
    assert "bad.tar is not a tar, or damaged" in done.stdout
    assert "1 of 2 shards failed" in done.stdout
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert [row["key"] for row in rows(tmp_path / "out")] == ["1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "{tmp}/none-*.tar", "--model", "demo"], "no tar matches"),
        (["--input", "{tmp}/gone.tar", "--model", "demo"], "no file {tmp}/gone.tar; expected a tar"),
        (["--demo", "--tokens", "31"], "31 tokens do not fit"),
        (["--demo", "--steps", "0"], "steps is 0; expected 1 or more"),
        (["--demo", "--lanes", "10"], "lanes is 10; expected a multiple of 16"),
        (["--input", "x.tar", "--model", "ViT-Z"], "no model 'ViT-Z'; expected demo"),
        (["--input", "x.tar", "--model", "ViT-B-32", "--pretrained", "gone.pt"], "no weights 'gone.pt' for ViT-B-32"),
        (["--input", "x.tar", "--model", "local-dir:{tmp}/gone"], "expected an open_clip folder"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(tmp_path: Path, words: list[str], message: str, here: Run) -> None:
    out = tmp_path / "out"
    done = here("jobs.caption", *(w.format(tmp=tmp_path) for w in words), "--output", out, "--local")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert message.format(tmp=tmp_path) in line
    assert not out.exists()


def test_an_unknown_option_has_status_2(tmp_path: Path, here: Run) -> None:
    assert here("jobs.caption", "--demo", "--output", tmp_path / "out", "--stepz", 3).returncode == 2


def test_invert_prints_a_prompt_for_each_image(images: list, tmp_path: Path, here: Run) -> None:
    paths = []
    for i in (0, 1):
        images[i].save(tmp_path / f"{i}.png")
        paths.append(tmp_path / f"{i}.png")
    done = here("jobs.invert", *paths, "--model", "demo", "--steps", 40)
    assert done.returncode == 0, done.stderr
    assert "0.png" in done.stdout.splitlines()[-2]
    together = here("jobs.invert", *paths, "--model", "demo", "--steps", 40, "--together")
    assert "0.png + 1.png" in together.stdout
    of_each = together.stdout.splitlines()[-2:]  # the weight of each image, and its similarity to the prompt
    assert [line.split()[0] for line in of_each] == ["0.png", "1.png"]
    assert all(float(line.split()[-1]) > 0.3 for line in of_each)


def test_invert_names_the_file_it_cannot_read(tmp_path: Path, here: Run) -> None:
    (tmp_path / "a.jpg").write_bytes(b"junk")
    done = here("jobs.invert", tmp_path / "a.jpg", "--model", "demo")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/a.jpg: cannot decode the image")
