"""The benchmark runs, and what it counts is right."""

import dataclasses
import io
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
from jobs.benchmark.costs import count_costs, shape_of
from jobs.benchmark.equal_score import learn_exactly, measure_equal_score
from jobs.benchmark.overhead import measure_overhead
from jobs.benchmark.pipeline import SimulatedGpu, photo, waiting_engine
from pez import cost
from pez.errors import UserError
from pez.methods.published import learn_as_published
from pez.methods.swaps import swap_rounds
from pez.objectives.clip import ClipObjective
from pez.seeds import generator_for
from pez.tasks import Task


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


class Clock:
    """Time that passes only while someone sleeps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def test_a_simulated_gpu_takes_its_time_for_each_image_and_is_idle_without_images(demo_clip: pez.Clip) -> None:
    clock = Clock()
    gpu = SimulatedGpu(32, 96, clock.now, clock.sleep)
    method = pez.PezSettings(steps=10, swaps=2)
    engine = waiting_engine(demo_clip, method, gpu, images_per_second=40.0)
    tasks = [Task(f"{i}", torch.nn.functional.normalize(torch.randn(64), dim=-1)) for i in range(96)]
    finished = [learned for done in engine.run(tasks) for learned in done]
    assert sorted(int(learned.task.key) for learned in finished) == list(range(96))
    assert {learned.steps for learned in finished} == {10}, "gradient steps, as from real phases"
    assert clock.seconds == pytest.approx(96 / 40)
    assert gpu.busy == pytest.approx(1.0)

    clock, several = Clock(), dataclasses.replace(method, restarts=4, finalists=1)
    gpu = SimulatedGpu(32, 96, clock.now, clock.sleep)
    finished = [one for done in waiting_engine(demo_clip, several, gpu, 40.0).run(tasks) for one in done]
    assert (len(finished), {one.steps for one in finished}) == (96, {40})
    assert clock.seconds == pytest.approx(96 / 40), (
        "four searches and one of them swapped take as long as was asked for"
    )

    alone = SimulatedGpu(32, 96, clock.now, clock.sleep)
    engine = waiting_engine(demo_clip, method, alone, images_per_second=40.0)
    for first in range(0, 96, 8):  # a quarter of the lanes, and a pause
        list(engine.run(tasks[first : first + 8]))
        clock.sleep(32 / 40)
    assert alone.empty == pytest.approx(0.75)
    assert alone.busy == pytest.approx(0.125)


def test_the_pipeline_keeps_a_simulated_gpu_busy_unless_shards_are_too_small(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--pipeline", "--model", "demo", "--lanes", "32", "--images-per-second", "40", "--image-size", "64"]
    found = {}
    for size in ("4", "48"):
        file = tmp_path / f"{size}.json"
        assert status_of([*words, "--images", "96", "--steps", "5", "--shard-size", size, "--json", str(file)]) == 0
        found[size] = json.loads(file.read_text())
    assert found["4"]["empty"] >= 0.5  # four shards of 4 images at a time, in 32 lanes
    assert found["48"]["empty"] < 0.25
    for result in found.values():
        assert result["sustained"] == pytest.approx(40 * result["busy"])
        assert 0 < result["busy"] <= 1 - result["empty"] + 0.01
        parts = result["cpu_seconds"]
        assert all(value >= 0 for value in parts.values()), parts
        assert parts["decoding"] > 0
        assert result["cpu_seconds_per_image"] == pytest.approx(sum(parts.values()))
        assert result["cores"] == pytest.approx(1 + 40 * sum(parts.values()))
    assert "a GPU of 40 images/s needs" in capsys.readouterr().out


def test_the_photos_are_as_large_as_those_of_a_data_set() -> None:
    file = io.BytesIO()
    photo(0, 512).save(file, "JPEG", quality=90)
    assert 60_000 < len(file.getvalue()) < 100_000


def test_the_equal_score_is_that_of_the_smallest_budget_that_reaches_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--equal-score", "--model", "demo", "--images", "8", "--exact-steps", "30", "--seconds", "0"]
    assert status_of([*words, "--json", str(tmp_path / "e.json")]) == 0
    result = json.loads((tmp_path / "e.json").read_text())
    *worse, reached = result["tried"]
    assert reached["difference"] >= 0
    assert all(tried["difference"] < 0 for tried in worse)
    assert reached["similarity"] - result["published"]["similarity"] == pytest.approx(reached["difference"], abs=1e-5)
    seconds = result["published"]["steps"] * result["published"]["seconds_per_step"]
    assert result["equal_score_ratio"] == pytest.approx(seconds / reached["seconds"])
    assert "equal_score_ratio" in capsys.readouterr().out


def test_the_published_score_is_that_of_the_published_code(demo_clip: pez.Clip, images: list) -> None:
    settings = pez.PezSettings(method="pez", vocabulary="full", steps=15)
    targets = demo_clip.image_features(images[:2])
    ids = learn_exactly(demo_clip, targets, settings)
    vocabulary = demo_clip.vocabulary(settings)
    for i, target in enumerate(targets):
        first = vocabulary.random_ids(8, generator_for(settings.seed, f"{i}", 0))
        assert ids[i].tolist() == learn_as_published(demo_clip, target, first, settings)[0].tolist()


def test_an_interrupted_exact_run_continues_with_the_same_bits(
    demo_clip: pez.Clip, images: list, tmp_path: Path
) -> None:
    settings = pez.PezSettings(method="pez", vocabulary="full", steps=12)
    targets = demo_clip.image_features(images[:3])
    file, said = tmp_path / "state.pt", list[str]()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            learn_exactly(demo_clip, targets, settings, said.append, file, stop_after=-1.0)
    with pytest.raises(UserError, match="of other images, another model or other settings; remove it"):
        learn_exactly(demo_clip, targets.flip(0), settings, checkpoint=file)
    resumed = learn_exactly(demo_clip, targets, settings, said.append, file)
    assert f"{file} has 3 of 12 steps" in said
    assert any("of 12 steps, " in line and "min left" in line for line in said)
    assert not file.exists()
    assert resumed.tolist() == learn_exactly(demo_clip, targets, settings).tolist()


def test_a_score_that_no_budget_reaches_has_no_ratio(demo_clip: pez.Clip) -> None:
    found = measure_equal_score(
        demo_clip, demo_clip, pez.PezSettings(), 4, 40, 0.0, lambda _: None, budgets=[(1, 0), (2, 0)]
    )
    assert [(tried.steps, tried.swaps) for tried in found.tried] == [(1, 0), (2, 0)]
    assert found.tried[-1].difference < 0
    assert found.ratio is None


def test_costs_grow_with_the_tokens() -> None:
    said = list[str]()
    settings = pez.PezSettings(vocabulary="full")
    [small, large] = count_costs(["RN50"], [8, 16], settings, 24_131, said.append)
    assert large.tokens == 16
    assert 1.5 < large.walk / small.walk < 2.5
    assert small.published / small.default > 25
    assert len(said) == 3
    [one] = count_costs(["RN50"], [8], dataclasses.replace(settings, restarts=1), 24_131, said.append)
    assert one.published / one.default > 80
    assert count_costs(["RN50"], [76], settings, 24_131, said.append) == []
    with pytest.raises(UserError, match="no model 'ViT-Z' in open_clip"):
        shape_of("ViT-Z")


def test_a_shape_counts_as_its_model_does() -> None:
    clip = pez.load_clip("RN50", "none")
    vocabulary = clip.vocabulary(pez.PezSettings())
    counted = cost.method_flop(clip, pez.PezSettings(), vocabulary)
    [shape] = count_costs(["RN50"], [8], pez.PezSettings(), len(vocabulary.ids), lambda _: None)
    assert shape.default == pytest.approx(counted / 1e9)
    assert shape.published == pytest.approx(3000 * cost.baseline_step_flop(clip, 8) / 1e9)
