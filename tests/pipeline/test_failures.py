"""What went wrong can be read afterwards: a traceback for each failed unit, and warnings in reports and on the terminal."""

import json
import re
import sys
import warnings
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from faulty import FaultyActor

from jobs import caption, command
from pipeline.failures import FailureLog
from pipeline.folder import OutputFolder
from pipeline.run import warning_log
from pipeline.run.ray import run_on_ray
from pipeline.run.stage import StagePlan
from pipeline.run.tasks import Whole, tasks_of
from pipeline.settings import ClusterSettings
from pipeline.sources.base import Unit

FEW_STEPS = ["--model", "demo", "--steps", "2", "--swaps", "0", "--lanes", "16"]


def run(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["jobs.caption", *words])
    with pytest.raises(SystemExit) as ended:
        caption.main()
    out = capsys.readouterr()
    return int(ended.value.code or 0), out.out, out.err


def test_a_unit_that_fails_leaves_its_traceback_until_it_is_done(
    scene_tars: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Path(scene_tars[1]).read_bytes()
    Path(scene_tars[1]).write_bytes(whole[:3000])
    out = tmp_path / "out"
    words = ["--input", *scene_tars, "--output", str(out), "--local", "--attempts", "2", *FEW_STEPS]
    monkeypatch.setattr("pipeline.run.work.retry_delay", lambda _: 0.0)
    status, printed, err = run(words, monkeypatch, capsys)
    [line] = [line for line in (printed + err).splitlines() if line.startswith("failed: ")]
    log = (out / "_failures" / "scenes-1.txt").read_text()
    assert status == 1
    assert line.endswith("; see _failures/scenes-1.txt")
    assert len(re.findall(r"^\d{4}-.* scenes-1.tar is truncated", log.replace("/", " "), re.M)) == 2  # one an attempt
    assert "Traceback (most recent call last)" in log
    assert "UnitError" in log
    Path(scene_tars[1]).write_bytes(whole)
    assert run(words, monkeypatch, capsys)[0] == 0
    assert not (out / "_failures").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_a_bug_in_an_actor_leaves_its_traceback_too(tmp_path: Path) -> None:
    log = FailureLog(OutputFolder(str(tmp_path / "out")))
    stage = StagePlan(
        "learning",
        lambda: FaultyActor.options(num_cpus=0.5).remote(str(tmp_path)),
        1,
        lambda _: None,
    )
    units = [Unit("mem://bad", "bad"), Unit("mem://kills-always", "kills-always"), Unit("mem://fine", "fine")]
    failed = run_on_ray(tasks_of(units), [stage], ClusterSettings(attempts=2), on_failure=log.record)
    log.conclude(failed, units)
    assert sorted(failed) == ["mem://bad", "mem://kills-always"]
    assert log.located(failed, units)["mem://bad"] == "learning: this shard is bad (2 attempts); see _failures/bad.txt"
    trace = (tmp_path / "out/_failures/bad.txt").read_text()
    assert trace.count('raise ValueError("this shard is\\nbad")') == 2
    assert (tmp_path / "out/_failures/kills-always.txt").read_text().count("the actor died") == 2
    assert not (tmp_path / "out/_failures/fine.txt").exists()


def test_a_traceback_holds_no_signature(tmp_path: Path) -> None:
    log = FailureLog(OutputFolder(str(tmp_path)))
    source = "https://user:hush@host/a.tar?X-Amz-Signature=hush&x=1"
    log.record(Whole(Unit("https://host/a.tar?x=1", "a", source=source)), "no", f"Traceback\n  open({source!r})\n")
    assert "hush" not in (tmp_path / "_failures/a.txt").read_text()


@pytest.mark.parametrize("where", ["--local", "--actors=1"])
def test_a_warning_is_on_the_terminal_once_and_in_every_report(
    where: str,
    scene_tars: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With --actors the warning is raised in another process."""
    out = tmp_path / "out"
    small = ["--model", "ViT-S-32-alt", "--pretrained", "none", "--steps", "1", "--swaps", "0", "--lanes", "16"]
    small += ["--allowlist", "red", "blue"]  # without it, each process reads the list of all words
    status, _, err = run(
        ["--input", *scene_tars[:2], "--output", str(out), where, "--device", "cpu", *small], monkeypatch, capsys
    )
    assert status == 0
    assert [line for line in err.splitlines() if "RANDOM" in line] == [
        "warning: ViT-S-32-alt has RANDOM weights (pretrained=none): its prompts mean nothing"
    ]
    for stem in ("scenes-0", "scenes-1"):
        [warning] = json.loads((out / f"_reports/{stem}.json").read_text())["warnings"]
        assert "RANDOM weights" in warning
    assert pq.read_table(out / "scenes-0.parquet").num_rows == 4


def test_each_unit_has_the_warnings_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    shown: list[str] = []
    with warnings.catch_warnings():
        warning_log.install(shown.append)
        with warning_log.recording() as first:
            warnings.warn("of\nthe first", stacklevel=1)
            with warning_log.recording() as second:
                warnings.warn("of both", stacklevel=1)
        warnings.warn("of none", stacklevel=1)
    assert (first, second) == (["of the first", "of both"], ["of both"])
    assert shown == ["of the first", "of both", "of none"]


def test_a_bug_shows_its_traceback_and_where_to_report_it(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise KeyError("a bug")

    with pytest.raises(SystemExit) as ended:
        command.end(work)
    err = capsys.readouterr().err
    assert ended.value.code == 1
    assert "Traceback" in err
    assert "please report it" in err
