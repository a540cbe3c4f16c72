"""What the README shows does what it says."""

import re

import pytest
from running import ROOT


def test_the_python_of_the_readme_runs_offline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(block.replace("tokens=8", "tokens=8, steps=20, swaps=2"), names := {})
    assert names["prompt"].text in capsys.readouterr().out
    assert len(names["shorter"].token_ids) == 4


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "RELIABILITY.md"):
        for link in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            if link and "://" not in link:
                assert (document.parent / link).exists(), f"{link} in {document.name}"


def test_every_test_that_the_promises_name_is_there() -> None:
    text = (ROOT / "RELIABILITY.md").read_text(encoding="utf-8")
    missing, file = [], ""
    for name, test in re.findall(r"`(?:(test_\w+\.py))?(?:::(test_\w+))?(?:\[[^`]*\])?`", text):
        file = name or file
        found = next((ROOT / "tests").rglob(file), None) if file else None
        if file and found is None:
            missing.append(file)
        elif found and test and f"def {test}(" not in found.read_text(encoding="utf-8"):
            missing.append(f"{file}::{test}")
    assert missing == []
