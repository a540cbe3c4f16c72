"""A hook of MkDocs: the documents of the repository's root, and files that documents link to, become part of the site."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = ("RELIABILITY.md", "BENCHMARKS.md", "EXPERIMENTS.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
OTHERS = (
    *("NOTICE", "LICENSE", "cluster.yaml", "pyproject.toml", "constraints.txt"),
    *(f"deploy/{path.name}" for path in sorted((ROOT / "deploy").glob("*"))),
)


def on_files(files: Files, config: Any) -> Files:
    """Add the files."""
    for name in PAGES:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    for name in OTHERS:
        files.append(File.generated(config, f"files/{name}.txt", content=(ROOT / name).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links to where the files are in the site."""

    def moved(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        name = (target if page.file.src_uri in PAGES else target.removeprefix("../")).removeprefix("docs/")
        if name == "README.md" and (target.startswith("../") or page.file.src_uri in PAGES):
            return "](README.md)"  # the root's has no page of its own
        return f"](files/{name}.txt)" if name in OTHERS else f"]({name}{anchor})"

    return re.sub(r"\]\((?!\w+://|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)", moved, markdown)
