"""Words that the model does not know end a job at its start, and not each of its shards."""

import sys
from pathlib import Path

import pytest

import pez
from jobs import caption, command
from pipeline.run.ray import plan_stage, run_on_ray
from pipeline.run.resources import ActorPlan
from pipeline.run.stage import ActorStartError
from pipeline.run.tasks import tasks_of
from pipeline.settings import CaptionSettings, ClusterSettings
from pipeline.sources.units import name_units
from pipeline.stages.learn import Learner, describe
from pipeline.stages.learn_stage import LearnStage

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


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_an_unknown_word_in_the_allowlist_ends_a_job_on_ray(scene_tars: list[str], tmp_path: Path) -> None:
    described = describe(SETTINGS, UNKNOWN, "cpu")
    learn = LearnStage(SETTINGS, UNKNOWN, str(tmp_path / "out"), described)
    stage = plan_stage(learn, ActorPlan(1, 0.0, 1.0, 1, "cpu"), lambda _: None)
    notes: list[str] = []
    with pytest.raises(ActorStartError, match="'qqqqxzqq' in the allowlist"):
        run_on_ray(tasks_of(name_units(scene_tars)), [stage], ClusterSettings(), on_note=notes.append)
    assert not any("Retrying" in note for note in notes)
