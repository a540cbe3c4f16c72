"""What the README shows does what it says."""

import re
import subprocess
import sys
from typing import Any

import pytest
from running import ROOT


def test_the_python_of_the_readme_runs_offline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    exec(block.replace("tokens=8", "tokens=8, steps=20, swaps=2"), names)
    assert names["prompt"].text in capsys.readouterr().out
    assert len(names["shorter"].token_ids) == 4


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            if link and "://" not in link:
                assert (document.parent / link).exists(), f"{link} in {document.name}"


def test_every_anchor_of_the_documents_is_a_heading() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for link, anchor in re.findall(r"\]\(([^)#:]*)#([^)]*)\)", document.read_text(encoding="utf-8")):
            target = document.parent / link if link else document
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in anchors, f"{link}#{anchor} in {document.name}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


def test_every_option_of_the_commands_in_the_documents_exists() -> None:
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(document.read_text(encoding="utf-8") for document in documents).replace("\\\n", " ")
    shown: dict[str, set[str]] = {}
    for command, line in re.findall(r"(?:^pez |`pez |python -m jobs\.)([a-z_]+)([^#`\n]*)", text, re.MULTILINE):
        shown.setdefault(command, set()).update(re.findall(r"--[a-z][a-z-]+", line))
    assert {"caption", "invert", "distill", "verify", "plan"} <= set(shown)
    for command, options in shown.items():
        words = [sys.executable, "-m", f"jobs.{command}", "--help"]
        known = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert options <= set(re.findall(r"--[a-z][a-z-]+", known)), f"pez {command}"


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
