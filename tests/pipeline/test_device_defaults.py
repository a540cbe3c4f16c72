"""Precision and lanes suit the device unless they are chosen, and what was chosen is written down."""

import pytest

import pez
from pez.settings import ModelSettings
from pipeline.description import describe, in_full
from pipeline.settings import CaptionSettings


def test_a_gpu_has_bfloat16_and_many_lanes_and_a_cpu_neither() -> None:
    for device, precision, lanes in (("cpu", "fp32", 64), ("cuda", "bf16", 1024), ("cuda:1", "bf16", 1024)):
        settings = CaptionSettings(model="demo").on(device)
        assert (settings.precision, settings.lanes) == (precision, lanes)
        engine = in_full(CaptionSettings(model="demo"), pez.PezSettings(), device)["engine"]
        assert (engine["device"], engine["precision"], engine["lanes"]) == (device, precision, lanes)


def test_what_is_chosen_counts_on_every_device() -> None:
    settings = CaptionSettings(precision="fp64", lanes=16)
    assert settings.on("cuda") == settings
    assert ModelSettings(precision="bf16").on("cpu").precision == "bf16"


def test_a_default_that_is_written_out_describes_the_same_run() -> None:
    for device in ("cpu", "cuda"):
        default = CaptionSettings(model="demo")
        assert describe(default, pez.PezSettings(), device) == describe(default.on(device), pez.PezSettings(), device)
    assert describe(CaptionSettings(model="demo"), pez.PezSettings(), "cpu")["engine"] == {
        "device": "cpu",
        "precision": "fp32",
    }


def test_defaults_of_the_search_may_be_written_out() -> None:
    model, written = CaptionSettings(model="demo"), pez.PezSettings(swaps=16, candidates=16)
    assert describe(model, written, "cpu") == describe(model, pez.PezSettings(), "cpu")
    assert in_full(model, pez.PezSettings(), "cpu")["method"] == in_full(model, written, "cpu")["method"]
    several = pez.PezSettings().for_models(2)
    assert describe(model, several, "cpu")["method"] == {
        "swaps": 32, "candidates": 32, "token_weight": 0.0, "restarts": 1
    }  # fmt: skip


def test_lanes_that_are_no_multiple_of_16_are_refused() -> None:
    with pytest.raises(ValueError, match="lanes is 20; expected a multiple of 16"):
        CaptionSettings(lanes=20)
