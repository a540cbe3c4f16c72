"""The direction of the code: jobs use pipeline and pez, pipeline uses pez, pez uses neither; one file imports Ray."""

import ast
from pathlib import Path

import pytest
from running import ROOT

FORBIDDEN = {"pez": {"pipeline", "jobs", "ray", "webdataset", "fsspec", "pyarrow"}, "pipeline": {"jobs"}}


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def imported_modules(file: Path) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
    found = [(node.module, node.names) for node in nodes if node.module]
    return {name for module, names in found for name in (module, *(f"{module}.{alias.name}" for alias in names))}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_nothing_above_it(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    assert {str(f): imported(f) & FORBIDDEN[package] for f in files if imported(f) & FORBIDDEN[package]} == {}


def test_one_file_imports_ray() -> None:
    files = [f for package in ("pez", "pipeline", "jobs") for f in (ROOT / package).rglob("*.py")]
    assert [f.relative_to(ROOT).as_posix() for f in files if "ray" in imported(f)] == ["pipeline/run/ray.py"]


def test_the_rest_of_the_pipeline_does_not_need_it() -> None:
    files = [f for package in ("pez", "pipeline") for f in (ROOT / package).rglob("*.py")]
    assert [str(f) for f in files if "pipeline.run.ray" in imported_modules(f)] == []


BELOW = {
    "run": ("pipeline.stages", "pipeline.table", "pipeline.rows"),
    "sources": ("pipeline.stages", "pipeline.run", "pipeline.table"),
}


@pytest.mark.parametrize("folder", BELOW)
def test_what_runs_units_knows_no_stage_and_sources_know_no_runner(folder: str) -> None:
    for file in (ROOT / "pipeline" / folder).glob("*.py"):
        assert [name for name in imported_modules(file) if name.startswith(BELOW[folder])] == [], file


def test_no_file_is_longer_than_can_be_read_at_once() -> None:
    files = [f for package in ("pez", "pipeline", "jobs") for f in (ROOT / package).rglob("*.py")]
    assert {f.relative_to(ROOT).as_posix() for f in files if len(f.read_text().splitlines()) > 400} == set()
