"""`--wandb`, offline: what is logged of each unit."""

import json
from pathlib import Path

import pytest
from caption_jobs import run_caption


def test_each_unit_is_logged_with_pictures_and_prompts(
    scene_tars: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = pytest.importorskip("wandb", reason="pip install -e '.[wandb]'")
    for name, value in (("MODE", "offline"), ("DIR", str(tmp_path)), ("CACHE_DIR", str(tmp_path)), ("SILENT", "true")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    logged: list[dict] = []
    log = wandb.sdk.wandb_run.Run.log

    def noted(run, values, *words, **options):  # type: ignore[no-untyped-def]
        logged.append(values)
        return log(run, values, *words, **options)

    monkeypatch.setattr(wandb.sdk.wandb_run.Run, "log", noted)
    caption = run_caption(monkeypatch, capsys)
    status, _, errors = caption("--input", *scene_tars, "--output", tmp_path / "out", "--wandb", "prompts")
    assert status == 0, errors
    assert [values["images"] for values in logged] == [4, 8, 12]
    reports = [json.loads(path.read_text()) for path in sorted((tmp_path / "out" / "_reports").glob("*.json"))]
    assert [values["unit/similarity"] for values in logged] == [report["mean_similarity"] for report in reports]
    assert [len(values["unit/samples"]) for values in logged] == [4, 4, 4]
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/unit/*.png"))) == 12
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
