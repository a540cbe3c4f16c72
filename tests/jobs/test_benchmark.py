"""The benchmark runs, and what it counts is right."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import pez
from jobs import command
from jobs.benchmark import job as benchmark
from jobs.benchmark import speed
from jobs.benchmark.overhead import measure_overhead
from pez import cost
from pez.methods.swaps import swap_rounds
from pez.objectives.clip import ClipObjective


def status_of(words: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        command.end(lambda: benchmark.run(words, "pez benchmark"))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_ratio_is_measured_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "demo", "--lanes", "16", "32", "--seconds", "1"]
    status = status_of([*words, "--json", str(tmp_path / "b.json")])
    result = json.loads((tmp_path / "b.json").read_text())
    assert status == 0
    assert [s["name"].split()[0] for s in result["speeds"]] == ["baseline", "engine", "engine"]
    best = min(s["seconds_per_image_step"] for s in result["speeds"][1:])
    assert result["ratio"] == pytest.approx(result["speeds"][0]["seconds_per_image_step"] / best)
    assert result["ratio"] > 1
    assert "ratio" in capsys.readouterr().out


def test_lane_counts_that_fail_leave_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timed = speed.time_engine

    def small(clip: pez.Clip, engine: pez.Clip, target: torch.Tensor, *rest: Any) -> speed.Speed:
        if len(target) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB.")
        return timed(clip, engine, target, *rest)

    monkeypatch.setattr(speed, "time_engine", small)
    words = ["--model", "demo", "--seconds", "0", "--lanes"]
    assert status_of([*words, "32", "16"]) == 0
    out = capsys.readouterr().out
    assert "engine, 32 lanes: OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB." in out
    assert "16 lanes) over the baseline" in out
    assert status_of([*words, "32"]) == 2
    assert "failed with all of these lane counts" in capsys.readouterr().err


def test_more_tokens_than_a_model_has_room_for_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["--model", "demo", "--tokens", "31", "--lanes", "16"]) == 2
    assert "its context of 32 has room for 1 to 30" in capsys.readouterr().err


def test_an_engine_with_other_gradients_is_not_timed(demo_clip: pez.Clip) -> None:
    other = pez.load_clip("demo-judge")
    target = torch.nn.functional.normalize(torch.randn(16, 64), dim=-1)
    with pytest.raises(ValueError, match="the engine's gradients differ from the model's: cosine"):
        speed.time_engine(demo_clip, other, target, pez.PezSettings(exact=True), 0.0)


def test_the_curve_compares_three_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--curve",
        "--model",
        "demo",
        "--images",
        "16",
        "--steps",
        "20",
        "--baseline-steps",
        "10",
        "--exact-steps",
        "20",
        "--swaps",
        "16",
    ]
    assert status_of([*words, "--json", str(tmp_path / "c.json")]) == 0
    result = json.loads((tmp_path / "c.json").read_text())
    curve, gain = result["curve"], result["gain"]
    found = {(p["method"], p["steps"]): p for p in curve}
    assert set(found) == {("baseline", 10), ("exact", 10), ("exact", 20), ("default", 10), ("default", 20)}
    assert found["baseline", 10]["similarity"] == pytest.approx(found["exact", 10]["similarity"], abs=0.02)
    assert found["default", 20]["similarity"] > found["exact", 20]["similarity"] + 0.02
    assert all(p["judged"] is not None for p in curve)
    for name in ("similarity", "judged"):
        assert gain[name] == pytest.approx(found["default", 20][name] - found["exact", 20][name])
    assert 0 < gain["interval"] < found["default", 20]["interval"] + found["exact", 20]["interval"]
    assert "default (20 steps) over exact (20), scene by scene: +" in capsys.readouterr().out


def test_an_unknown_model_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["--model", "ViT-Z"]) == 2
    assert capsys.readouterr().err.startswith("error: no model 'ViT-Z'")


def test_counted_operations_are_those_done(demo_clip: pez.Clip) -> None:
    vocabulary = demo_clip.vocabulary(pez.PezSettings())
    objective = ClipObjective(demo_clip.encoder(8))
    ids = vocabulary.ids[torch.arange(16 * 8).remainder(len(vocabulary.ids))].view(16, 8)
    target = torch.nn.functional.normalize(torch.randn(16, 64), dim=-1)
    with FlopCounterMode(display=False) as counter:
        soft = vocabulary.embed(ids).requires_grad_()
        torch.autograd.grad(objective.score(soft, target).sum(), soft)
        vocabulary.nearest(soft.detach())
    counted = 16 * cost.engine_step_flop(demo_clip, 8, vocabulary.allowed)
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.06)
    with FlopCounterMode(display=False) as counter:
        swap_rounds(objective, vocabulary, ids, target, rounds=9, candidates=10)
    counted = 16 * cost.swaps_flop(demo_clip, 8, 9, 10, vocabulary.allowed)
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.06)


@pytest.mark.slow
def test_bfloat16_prompts_are_as_good(demo_clip: pez.Clip, images: list) -> None:
    settings = pez.PezSettings(steps=100)
    means = []
    for precision in ("fp32", "bf16"):
        prompts = pez.learn_prompts(demo_clip.with_engine(precision), images, settings)
        means.append(sum(p.similarity for p in prompts) / len(prompts))
    assert means[1] == pytest.approx(means[0], abs=0.005)


def test_the_overhead_of_the_pipeline_is_measured() -> None:
    overhead = measure_overhead(pez.PezSettings(steps=20, swaps=2), images=16, rounds=1)
    assert overhead.images == 16
    assert overhead.pipeline_seconds / overhead.bare_seconds == pytest.approx(1 + overhead.share)
