"""A real language model and real reviews, where they are at hand."""

import json
import os

import pytest
from running import ROOT

from pez.classification import Template
from pez.models.language_model import load_language_model
from pez.objectives.language_model import Classification
from pipeline.sources.labelled import read_labelled

MODEL, REVIEWS = "PEZ_SMOLLM2", "PEZ_REVIEWS"
RECORD = ROOT / "benchmarks" / "classify.json"


@pytest.mark.slow
def test_the_recorded_prompt_of_smollm2_is_better_than_none_on_movie_reviews() -> None:
    for variable, what in ((MODEL, "SmolLM2-135M-Instruct.Q4_1.gguf"), (REVIEWS, "a table of movie reviews")):
        if not os.environ.get(variable):
            pytest.skip(f"{variable} does not name {what}")
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    words = record["verbalizer"]
    objective = Classification(load_language_model(os.environ[MODEL]), Template(record["template"]), words)
    reviews = read_labelled(os.environ[REVIEWS], "text", "label", words).some(400, "a real model")
    encoded = objective.encode(reviews)
    empty = objective.measure("", encoded).accuracy
    assert objective.measure(record["best"]["prompt"], encoded).accuracy > empty + 0.1
