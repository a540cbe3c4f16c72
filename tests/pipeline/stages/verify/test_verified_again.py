"""What is verified again and what is not, and with which settings."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import open_clip
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from small_generators import linked, rename_weights
from verified_outputs import PROMPTS, publish, rows_of, verified

from pez.errors import UserError
from pipeline.errors import OutputError
from pipeline.progress import prompt_table
from pipeline.rows import VERIFIED, Row
from pipeline.run.serial import run_serially
from pipeline.run.tasks import tasks_of
from pipeline.settings import VerifySettings
from pipeline.sources.base import Unit
from pipeline.sources.units import name_units
from pipeline.stages.verification import check_verification, resolved, score_model
from pipeline.stages.verified_table import VerifiedTable, VerifyReport
from pipeline.stages.verify import Verifier, verify_unit
from pipeline.stages.verify_stage import VerifyWorker
from pipeline.table import PromptTable


def test_a_verified_shard_is_not_verified_again(shard: Unit, table: PromptTable, verifier: Verifier) -> None:
    report = verify_unit(shard, verifier, verified(table))
    assert verified(table).pending([shard]) == []
    Path(shard.url).unlink()
    assert verify_unit(shard, verifier, verified(table)) == report


def test_columns_without_a_report_are_computed_again(shard: Unit, table: PromptTable, verifier: Verifier) -> None:
    verify_unit(shard, verifier, verified(table))
    before = Path(f"{table.url}/a.parquet").read_bytes()
    Path(f"{table.url}/_verified/a.json").unlink()  # as after a crash between the two
    assert verified(table).pending([shard]) == [shard]
    verify_unit(shard, verifier, verified(table))
    assert Path(f"{table.url}/a.parquet").read_bytes() == before


def test_a_report_without_columns_does_not_count(shard: Unit, table: PromptTable, verifier: Verifier) -> None:
    verify_unit(shard, verifier, verified(table))
    publish(table, shard, PROMPTS[1:])  # captioned again
    assert verified(table).pending([shard]) == [shard]
    verify_unit(shard, verifier, verified(table))
    assert rows_of(table)[0]["regenerated_similarity"] is not None


def test_null_columns_do_not_count_as_verified(shard: Unit, table: PromptTable, verifier: Verifier) -> None:
    verify_unit(shard, verifier, verified(table))
    marker = Path(f"{table.url}/_verified/a.json").read_bytes()
    publish(table, shard, PROMPTS[:3])
    Path(f"{table.url}/_verified/a.json").write_bytes(marker)  # put by a slower job
    assert verified(table).pending([shard]) == [shard]
    shown = io.StringIO()
    Console(file=shown, width=200).print(prompt_table(table.read(shard)))
    assert "regenerated" not in shown.getvalue()


def test_an_output_without_these_columns_is_verified(shard: Unit, table: PromptTable, verifier: Verifier) -> None:
    file = f"{table.url}/a.parquet"
    now = pq.read_table(file)
    pq.write_table(now.drop_columns(VERIFIED.names), file)
    assert verified(table).pending([shard]) == [shard]
    verify_unit(shard, verifier, verified(table))
    assert pq.read_schema(file).equals(now.schema)
    assert rows_of(table)[0]["regenerated_similarity"] is not None
    assert verified(table).pending([shard]) == []


def test_images_are_generated_when_keeping_them_is_asked_for_later(
    shard: Unit, table: PromptTable, verifier: Verifier
) -> None:
    verify_unit(shard, verifier, verified(table))
    before = rows_of(table)
    assert verified(table, keep_images=True).pending([shard]) == [shard]
    verify_unit(shard, verifier, verified(table, keep_images=True))
    assert rows_of(table) == before
    assert verified(table, keep_images=True).pending([shard]) == []


def test_a_shard_with_a_damaged_report_is_verified_again(shard: Unit, table: PromptTable, verifier: Verifier) -> None:
    verify_unit(shard, verifier, verified(table))
    marker = Path(f"{table.url}/_verified/a.json")
    good = json.loads(marker.read_text())
    marker.write_text(json.dumps(good | {"of_a_later_version": 1}))
    assert verified(table).pending([shard]) == []
    for data in ("", "{", "[]", "{}", json.dumps({k: v for k, v in good.items() if k != "rows"})):
        marker.write_text(data)
        assert verified(table).pending([shard]) == [shard]
    verify_unit(shard, verifier, verified(table))
    assert json.loads(marker.read_text()).keys() == good.keys()


def test_a_shard_that_is_unreadable_for_a_moment_is_retried(
    shard: Unit, table: PromptTable, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.run.work.retry_delay", lambda _: 0.0)
    away = Path(shard.url).rename(f"{shard.url}.away")
    notes: list[str] = []

    def come_back(line: str) -> None:
        notes.append(line)
        away.rename(shard.url)

    reports: list[VerifyReport] = []
    worker, tasks = VerifyWorker(verifier, verified(table)), tasks_of([shard])
    assert run_serially(tasks, worker, reports.append, attempts=2, on_note=come_back) == {}
    assert [report.scored for report in reports] == [3]
    assert len(notes) == 1
    assert notes[0].endswith(". Retrying")
    away = Path(shard.url).rename(f"{shard.url}.away")
    (Path(table.url) / "_verified" / "a.json").unlink()
    assert shard.url in run_serially(tasks, worker, reports.append)


def test_shards_are_found_from_their_reports(scene_tars: list[str], table: PromptTable) -> None:
    shards = name_units(scene_tars)
    for shard in shards:
        table.publish(shard, [Row("k", shard.url, "ok", prompt="p")], 1.0)
    Path(f"{table.url}/scenes-1.parquet").unlink()
    written = PromptTable.written(table.url)
    assert written.settings == table.settings
    assert written.shards() == [shards[0], shards[2]]


def test_other_settings_are_refused_and_named(shard: Unit, table: PromptTable, verifier: Verifier) -> None:
    verified(table).claim()
    verified(table, verify_batch=3, keep_images=True).claim()  # change no number
    verify_unit(shard, verifier, verified(table))
    with pytest.raises(
        UserError, match="verified with other settings: guidance was 9.0 and is 7.5, verify_steps was 1 and is 2; use"
    ):
        verified(table, guidance=7.5, verify_steps=2)


def test_settings_may_change_until_a_shard_is_verified(shard: Unit, table: PromptTable, verifier: Verifier) -> None:
    """As those of a run whose generator did not load."""
    slower = verified(table, guidance=7.5)
    slower.claim()
    verified(table).claim()
    with pytest.raises(OutputError, match="claimed by another run with different settings of verification"):
        verify_unit(shard, verifier, slower)  # what it has painted is not mixed with the others
    assert rows_of(table)[0]["regeneration"] is None
    verify_unit(shard, verifier, verified(table))
    assert verified(table).pending([shard]) == []


def test_a_variant_is_recorded_only_if_its_weights_differ(table: PromptTable, tmp_path: Path) -> None:
    alone = rename_weights(linked(tmp_path / "alone"), "fp16", "unet", "vae", "text_encoder")
    both = linked(tmp_path / "both")
    plain = both / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(plain, plain.with_name("diffusion_pytorch_model.fp16.safetensors"))

    def recorded(folder: Path, variant: str | None) -> VerifiedTable:
        return verified(table, verify=str(folder), verify_variant=variant)

    assert "verify_variant" not in recorded(both, None).settings["generator"]
    assert recorded(both, "fp16").settings["generator"]["verify_variant"] == "fp16"
    assert recorded(alone, "fp16").fingerprint == recorded(alone, None).fingerprint


def test_paths_of_models_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An actor's working directory is another one."""
    linked(tmp_path / "models" / "mine")
    monkeypatch.chdir(tmp_path)
    named = VerifySettings(verify="models/mine", score_model="local-dir:models/judge", keep_images=True)
    assert resolved(named) == dataclasses.replace(
        named, verify=f"{tmp_path}/models/mine", score_model=f"local-dir:{tmp_path}/models/judge"
    )
    for name in ("demo", "models/gone", "stabilityai/sd-turbo"):
        assert resolved(VerifySettings(verify=name)).verify == name


def test_the_default_score_model_is_not_the_guide() -> None:
    chosen = {
        guide: score_model(VerifySettings(verify="demo"), guide)
        for guide in ("demo", "demo-judge", "ViT-H-14", "ViT-L-14", "ViT-bigG-14", "ViT-g-14")
    }
    assert {guide: name for guide, (name, _) in chosen.items()} == {
        "demo": "demo-judge",
        "demo-judge": "demo",
        "ViT-H-14": "ViT-bigG-14",
        "ViT-L-14": "ViT-bigG-14",
        "ViT-bigG-14": "ViT-H-14",
        "ViT-g-14": "ViT-H-14",
    }
    for name, pretrained in chosen.values():
        if name.startswith("ViT"):
            assert pretrained in open_clip.list_pretrained_tags_by_model(name)


def test_a_guide_that_judges_its_own_prompts_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="demo is both guide and judge"):
        check_verification(VerifySettings(verify="demo", score_model="demo"), "demo", "none")
