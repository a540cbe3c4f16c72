"""Words that the model does not know end a job at its start, and not each of its shards."""

import sys
from pathlib import Path

import pytest

import pez
from jobs import caption, command
from pipeline.settings import CaptionSettings
from pipeline.stages.learn import Learner

SETTINGS = CaptionSettings(model="demo", lanes=16)
UNKNOWN = pez.PezSettings(tokens=4, allowlist=("qqqqxzqq",))
EVERYTHING = pez.PezSettings(tokens=4, blocklist=("*",))


@pytest.mark.parametrize(("method", "message"), [(UNKNOWN, "qqqqxzqq.*allowlist"), (EVERYTHING, "no token is allowed")])
def test_lists_that_leave_no_word_are_an_error_of_the_start(method: pez.PezSettings, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Learner(SETTINGS, method)
    assert "\n" not in str(error.value)


def test_an_unknown_word_in_the_allowlist_is_one_line_and_status_2(
    scene_tars: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--input", *scene_tars, "--output", out, "--model", "demo", "--allowlist", "qqqqxzqq", "--local"]
    monkeypatch.setattr(sys, "argv", ["job", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        command.run(caption.CaptionJob, None, caption.caption)
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert len(told.err.strip().splitlines()) == 1
    assert "'qqqqxzqq' in the allowlist" in told.err
    assert not out.exists()
