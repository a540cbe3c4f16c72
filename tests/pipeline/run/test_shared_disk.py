"""A local path must be the same file for the driver and for every actor."""

from pathlib import Path

import pytest

from pez.errors import UserError
from pipeline.run import shared_disk
from pipeline.run.shared_disk import SharedDisk, check_outside_package
from pipeline.sources.base import Unit
from pipeline.table import PromptTable

PACKAGE = "tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_0123456789abcdef"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_disk, "_PATIENCE", 0.3)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the driver of a submitted job starts."""
    folder = tmp_path / PACKAGE
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    "output", ["prompts", "./prompts", "a/../prompts", "{package}/prompts", "file://{package}/out"]
)
def test_an_output_in_a_submitted_package_is_refused(package: Path, output: str) -> None:
    with pytest.raises(
        UserError, match="folder that Ray unpacks .* pass an absolute path on a disk that all nodes share"
    ):
        check_outside_package([output.format(package=package)], "output")


@pytest.mark.parametrize("output", ["{tmp}/prompts", "s3://bucket/prompts", "../../../../../../prompts", "~/prompts"])
def test_another_output_of_a_submitted_job_is_taken(package: Path, tmp_path: Path, output: str) -> None:
    check_outside_package([output.format(tmp=tmp_path)], "output")


def test_the_disk_of_the_driver_is_known_again_and_nothing_stays_behind(tmp_path: Path) -> None:
    tar = tmp_path / "0.tar"
    tar.write_bytes(b"0123")
    table = PromptTable(str(tmp_path / "out"), {})
    shards = [Unit(str(tar), "0"), Unit("s3://bucket/1.tar", "1")]
    with shared_disk.shared_disk(table, shards) as disk:
        disk.check("here")
        tar.write_bytes(b"another one")
        with pytest.raises(UserError, match=f"on node here the input {tar} is not the same"):
            disk.check("here")
    assert [path.name for path in (tmp_path / "out").iterdir()] == []


def test_a_folder_of_the_same_name_is_not_the_output(tmp_path: Path) -> None:
    """Not even one in which a run with the same settings was."""
    table = PromptTable(str(tmp_path / "out"), {})
    table.claim()
    with shared_disk.shared_disk(table, []) as disk:
        (tmp_path / "out").rename(tmp_path / "driver's")
        PromptTable(str(tmp_path / "out"), {}).claim()
        with pytest.raises(UserError, match=rf"on node 10.0.0.2 the output {tmp_path}/out is not the same .*s3://"):
            disk.check("10.0.0.2")


def test_an_object_store_is_the_same_everywhere() -> None:
    SharedDisk().check("anywhere")
