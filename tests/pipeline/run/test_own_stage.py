"""A stage that the project does not have: it runs here and on Ray, with attempts, resume and reports."""

from pathlib import Path

import pixel_stage
import pytest
from pixel_stage import PixelReport, PixelStage
from ray import cloudpickle

from pipeline.run import warning_log
from pipeline.run.ray import plan_stage, run_on_ray
from pipeline.run.resources import ActorPlan
from pipeline.run.serial import run_serially
from pipeline.run.tasks import tasks_of
from pipeline.settings import ClusterSettings
from pipeline.sources.units import name_units

EXPECTED = [(f"scenes-{i}", 4 * 64 * 64, [f"scenes-{i} has 4 images"]) for i in range(3)]


def told(reports: list[PixelReport]) -> list[tuple[str, int, list[str]]]:
    return sorted((report.stem, report.pixels, report.warnings) for report in reports)


def test_a_stage_of_ones_own_is_a_few_lines() -> None:
    assert len(Path(str(pixel_stage.__file__)).read_text().splitlines()) < 60


def test_a_stage_of_ones_own_runs_in_this_process(
    scene_tars: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.run.work.retry_delay", lambda _: 0.0)
    warning_log.install()
    worker = PixelStage(str(tmp_path)).open("cpu", 1)
    reports: list[PixelReport] = []
    for _ in range(2):  # the second run finds all done
        reports.clear()
        failed = run_serially(tasks_of(name_units(scene_tars)), worker, reports.append, attempts=2)
        assert (told(reports), failed) == (EXPECTED, {})


@pytest.mark.usefixtures("ray_cluster")
def test_a_stage_of_ones_own_runs_on_ray(scene_tars: list[str], tmp_path: Path) -> None:
    cloudpickle.register_pickle_by_value(pixel_stage)
    try:
        for _ in range(2):
            reports: list[PixelReport] = []
            stage = plan_stage(PixelStage(str(tmp_path)), ActorPlan(1, 0, 1, 1, "cpu"), reports.append)
            assert run_on_ray(tasks_of(name_units(scene_tars)), [stage], ClusterSettings(attempts=2)) == {}
            assert told(reports) == EXPECTED
    finally:
        cloudpickle.unregister_pickle_by_value(pixel_stage)
