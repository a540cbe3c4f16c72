"""A cluster that was started by `ray start`, in a folder of its own: output where the user sees it, or refused before work."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from own_cluster import RAY, free_port, joined_node, started_cluster
from ray.job_submission import JobSubmissionClient
from running import ROOT
from samples_on_disk import MakeTar

FEW_STEPS = ("--model", "demo", "--tokens", "4", "--steps", "3", "--swaps", "0")


@pytest.fixture
def folders(scene_tars: list[str], tmp_path: Path) -> tuple[Path, Path]:
    """Where the cluster was started, and where the user is, who has shards."""
    server, user = tmp_path / "server", tmp_path / "user"
    for folder in (server, user):
        folder.mkdir()
    shutil.move(Path(scene_tars[0]).parent, user / "shards")
    return server, user


def run(folder: Path, address: str, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RAY_ADDRESS": address, "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "jobs.caption", *map(str, words), *FEW_STEPS]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_cluster_started_elsewhere_writes_where_the_user_is(folders: tuple[Path, Path]) -> None:
    server, user = folders
    with started_cluster(server) as address:
        relative = run(user, address, "--input", "shards", "--output", "prompts")
        assert relative.returncode == 0, relative.stdout + relative.stderr
        home = run(user, address, "--input", "~/shards/scenes-0.tar", "--output", "~/others")
        assert home.returncode == 0, home.stdout + home.stderr
    assert files(server) == ["ray.log"]
    assert pq.read_table(user / "prompts").num_rows == 12
    assert pq.read_table(user / "others").num_rows == 4
    assert f"{user}/prompts" in relative.stdout.splitlines()[-1]
    assert f"{user}/others" in home.stdout.splitlines()[-1]
    assert not list(user.rglob("*tmp-*"))


@pytest.fixture
def other_disk(folders: tuple[Path, Path]) -> list[str]:
    """Words that run a command where the user's folder is another disk, as on another machine."""
    words = ["unshare", "--mount", "--propagation", "private"]
    if subprocess.run([*words, "true"], check=False, capture_output=True).returncode:
        pytest.fail("this test needs root, for a node with disks of its own")
    return [*words, "sh", "-c", f'mount -t tmpfs none "{folders[1]}" && exec "$@"', "sh"]


@pytest.mark.slow
def test_a_node_that_does_not_share_the_disk_is_found_out_before_work(
    folders: tuple[Path, Path], other_disk: list[str], tmp_path: Path
) -> None:
    server, user = folders
    with started_cluster(server, cpus=0) as address:
        with joined_node(server, address, other_disk, cpus=1):
            output = run(user, address, "--input", "shards", "--output", "prompts")
            inputs = run(user, address, "--input", "shards", "--output", tmp_path / "shared")
        with joined_node(server, address, cpus=1):
            mended = run(user, address, "--input", "shards", "--output", "prompts", "--seed", 1)
    assert (output.returncode, inputs.returncode) == (2, 2)
    [line] = [line for line in output.stderr.splitlines() if line]
    assert line.startswith("error: on node ")
    assert f"the output {user}/prompts is not the same as on the machine that started the job; share that disk" in line
    assert f"the input {user}/shards/scenes-0.tar is not the same" in inputs.stderr
    assert mended.returncode == 0, mended.stdout + mended.stderr  # nothing had claimed the output with other settings
    assert pq.read_table(user / "prompts").num_rows == 12


@pytest.fixture
def dashboard(folders: tuple[Path, Path]) -> Iterator[str]:
    port = free_port()
    options = ("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}")
    with started_cluster(folders[0], *options):
        yield f"http://127.0.0.1:{port}"


def ray_job(verb: str, dashboard: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`ray job VERB` from a checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    line = [RAY, "job", verb, "--address", dashboard, *words]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=400)


def caption_words(*words: object) -> tuple[str, ...]:
    return ("--working-dir", str(ROOT), "--", "python", "-m", "jobs.caption", *map(str, words), *FEW_STEPS)


@pytest.mark.slow
def test_a_submitted_job_writes_where_the_user_sees_it_or_is_refused(
    folders: tuple[Path, Path], dashboard: str
) -> None:
    user = folders[1]
    relative = ray_job("submit", dashboard, *caption_words("--input", user / "shards", "--output", "prompts"))
    assert relative.returncode == 1
    assert "error: --output prompts is in the folder that Ray unpacks for a submitted job" in relative.stdout
    assert "pass an absolute path on a disk that all nodes share, or a URL in an object store" in relative.stdout
    absolute = ray_job("submit", dashboard, *caption_words("--input", user / "shards", "--output", user / "prompts"))
    assert absolute.returncode == 0, absolute.stdout + absolute.stderr
    assert "key" in absolute.stdout
    assert "similarity" in absolute.stdout, "the table is in the log that is followed"
    assert "3 Parquet files in" in absolute.stdout
    assert pq.read_table(user / "prompts").num_rows == 12


@pytest.mark.slow
def test_a_submitted_job_that_fails_ends_with_1(folders: tuple[Path, Path], dashboard: str) -> None:
    user = folders[1]
    (user / "shards" / "scenes-1.tar").write_bytes(b"not a tar")
    failed = ray_job("submit", dashboard, *caption_words("--input", user / "shards", "--output", user / "prompts"))
    assert failed.returncode == 1
    assert "1 of 3 shards failed" in failed.stdout
    assert pq.read_table(user / "prompts").num_rows == 8


@pytest.mark.slow
def test_a_submitted_job_stops_and_resumes(folders: tuple[Path, Path], dashboard: str) -> None:
    user = folders[1]
    words: list[object] = ["--input", user / "shards", "--output", user / "prompts"]
    words += ["--actors", 1, "--shards-at-once", 1, "--lanes", 16]
    slow = [*map(str, caption_words(*words)[:-4]), "--steps", "1000", "--swaps", "0"]
    client = JobSubmissionClient(dashboard)
    assert ray_job("submit", dashboard, "--submission-id", "first", "--no-wait", *slow).returncode == 0
    deadline = time.monotonic() + 120
    while not list((user / "prompts" / "_reports").glob("*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert client.stop_job("first")
    while (status := client.get_job_status("first")) != "STOPPED":
        assert status == "RUNNING"
        assert time.monotonic() < deadline
        time.sleep(0.1)
    done = len(list((user / "prompts" / "_reports").glob("*.json")))
    assert not (user / "prompts" / "_SUCCESS").exists()
    again = ray_job("submit", dashboard, *slow)
    assert again.returncode == 0, again.stdout
    assert "3/3 shards" in again.stdout
    assert f"{12 - 4 * done} images" in again.stdout, "only what was left"


def test_what_is_submitted_leaves_data_and_outputs_at_home(make_tar: MakeTar, tmp_path: Path) -> None:
    """By Ray's own reading of .rayignore."""
    from ray._private.runtime_env.packaging import create_package

    checkout = tmp_path / "checkout"
    (checkout / "pipeline").mkdir(parents=True)
    (checkout / "pipeline" / "cluster.py").touch()
    for name in (".rayignore", ".gitignore"):
        shutil.copy(ROOT / name, checkout / name)
    kept_out = ["prompts/0.parquet", "prompts-2/0.parquet", "shards/0.tar", "one-shard.tar", "trial/_run.json"]
    kept_out += ["out/0.parquet", ".git/objects/pack/a.pack", ".venv/bin/python", "docs/demo.png", "tests/test_a.py"]
    for name in kept_out:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes(b"x" * 1000)
    package = tmp_path / "package.zip"
    create_package(str(checkout), package, include_gitignore=True)
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", package], capture_output=True, text=True, check=True
    )
    packed = {line.split()[0] for line in listed.stdout.splitlines()[1:]}
    assert "pipeline/cluster.py" in {name.partition("/")[2] or name for name in packed} | packed
    assert not [name for name in packed for out in kept_out if name.endswith(out)]
