"""The direction of the code: jobs use pipeline and pez, pipeline uses pez, pez uses neither; one file knows Ray."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {"pez": {"pipeline", "jobs", "ray", "webdataset", "fsspec", "pyarrow"}, "pipeline": {"jobs"}}


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_nothing_above_it(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    assert {str(f): imported(f) & FORBIDDEN[package] for f in files if imported(f) & FORBIDDEN[package]} == {}


def test_only_the_cluster_imports_ray() -> None:
    files = [f for package in ("pez", "pipeline", "jobs") for f in (ROOT / package).rglob("*.py")]
    assert [f.name for f in files if "ray" in imported(f)] == ["cluster.py"]
