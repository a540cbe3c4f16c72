"""Blocklists that are named: a file, and a list of offensive words from a package."""

import importlib.metadata
import re
from pathlib import Path

import pytest
import torch

import pez
from pez import offensive


def test_a_file_lists_blocked_words(tmp_path: Path, demo_clip: pez.Clip) -> None:
    (tmp_path / "words.txt").write_text("# colors\nred\n\n  bl* \n", encoding="utf-8")
    settings = pez.PezSettings(blocklist=(f"@{tmp_path}/words.txt", "star"))
    assert settings.blocklist == ("red", "bl*", "star")
    texts = {demo_clip.text_of([i]) for i in demo_clip.vocabulary(settings).ids.tolist()}
    assert not texts & {"red", "blue", "black", "star"}
    assert {"yellow", "ring"} <= texts
    assert pez.PezSettings(blocklist=("@",)).blocklist == ("@",)


def test_a_file_that_lists_no_words_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(pez.UserError, match=r"blocklist has @.*empty.txt, which lists no words; expected one per line"):
        pez.PezSettings(blocklist=(f"@{tmp_path}/empty.txt",))
    with pytest.raises(pez.UserError, match=r"blocklist has @.*gone.txt, which cannot be read: No such file"):
        pez.PezSettings(blocklist=(f"@{tmp_path}/gone.txt",))


def test_no_offensive_word_is_in_prompts(demo_clip: pez.Clip) -> None:
    settings = pez.PezSettings(vocabulary="words", untrained_tokens=True, blocklist=("@offensive",))
    assert settings.blocklist == (f"@offensive {importlib.metadata.version('better-profanity')}",)
    assert pez.PezSettings(blocklist=settings.blocklist).blocklist == settings.blocklist
    words = {word.lower() for word in offensive.expanded(settings.blocklist)}
    assert len(words) > 800
    vocabulary = demo_clip.vocabulary(settings)
    ids = vocabulary.random_ids(80_000, torch.Generator().manual_seed(0)).view(10_000, 8)
    found = {word for row in ids.tolist() for word in re.findall(r"\w+", demo_clip.text_of(row))}
    assert not found & words
    before = demo_clip.vocabulary(pez.PezSettings(vocabulary="words", untrained_tokens=True)).ids
    gone = {demo_clip.text_of([i]) for i in set(before.tolist()) - set(vocabulary.ids.tolist())}
    assert 100 < len(gone) < 1000
    assert len(gone & words) > 100


def test_a_list_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.metadata.version("better-profanity")
    with pytest.raises(
        pez.UserError, match=f"blocklist has @offensive 0.1, but better-profanity {installed} is installed"
    ):
        pez.PezSettings(blocklist=("@offensive 0.1",))

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(
        pez.UserError, match="blocklist has @offensive, but better-profanity is not installed; install it"
    ):
        pez.PezSettings(blocklist=("@offensive",))
