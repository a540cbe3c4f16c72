"""Replay what the authors' published code did, step by step, through the optimiser that users run.

PEZ_TRAJECTORIES=FILE replays another file with the same fields.
"""

import os
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from pez.engine import Engine
from pez.learn import learn_for_targets
from pez.methods.published import learn_as_published
from pez.models.clip import Clip
from pez.objectives.clip import ClipObjective, Target
from pez.settings import PezSettings
from pez.tasks import Step, Task
from pez.vocabulary import Vocabulary

GOLDEN = Path(__file__).parent / "golden"
TRAJECTORIES = np.load(os.environ.get("PEZ_TRAJECTORIES", GOLDEN / "trajectories.npz"))
CASES = sorted({name.split("/")[0] for name in TRAJECTORIES.files})


@pytest.fixture(scope="module")
def clip() -> Clip:
    open_clip.add_model_config(GOLDEN / "model.json")
    model, _, preprocess = open_clip.create_model_and_transforms("model", pretrained=str(GOLDEN / "model.safetensors"))
    return Clip(model, preprocess, open_clip.get_tokenizer("model"), "golden", torch.device("cpu"), "fp64")


@pytest.mark.parametrize("case", CASES)
def test_every_step_is_the_authors_step(clip: Clip, case: str) -> None:
    golden = {name.split("/")[1]: TRAJECTORIES[name] for name in TRAJECTORIES.files if name.startswith(case + "/")}
    allowed = torch.ones(49408, dtype=torch.bool)
    allowed[torch.from_numpy(golden.get("blocked_ids", np.zeros(0, np.int64)))] = False
    targets = torch.from_numpy(golden["targets"])
    weight = float(golden["loss_weight"])
    initial_ids = torch.from_numpy(golden["initial_ids"])
    settings = PezSettings(
        tokens=len(initial_ids),
        steps=len(golden["step_ids"]),
        learning_rate=float(golden["lr"]),
        weight_decay=float(golden["weight_decay"]),
        method="pez",
    )
    target = Target(targets, torch.full((len(targets),), weight)).direction()
    seen: list[Step] = []
    objective = ClipObjective(clip.encoder(settings.tokens))
    vocabulary = Vocabulary(clip.tower.token_embedding.weight, allowed)
    engine = Engine(objective, vocabulary, settings, lanes=1, on_step=seen.append)
    [[learned]] = engine.run([Task(case, target, initial_ids)])
    ids = torch.stack([step.token_ids[0] for step in seen]).numpy()
    similarity = torch.stack([step.score[0] for step in seen]).numpy() / weight
    differing = np.flatnonzero((ids != golden["step_ids"]).any(-1))
    assert not len(differing), f"first different token at step {differing[0]}"
    assert np.abs(similarity - golden["step_similarity"]).max() < 1e-9
    assert learned.token_ids.tolist() == golden["step_ids"][golden["best_step"]].tolist()


def test_the_baseline_of_the_benchmark_takes_the_same_steps(clip: Clip) -> None:
    shipped = np.load(GOLDEN / "trajectories.npz")
    golden = {name: shipped[f"one_image/{name}"] for name in ("targets", "initial_ids", "step_ids")}
    steps: list[list[int]] = []
    target = Target(torch.from_numpy(golden["targets"])).direction()
    settings = PezSettings(steps=150)
    initial_ids = torch.from_numpy(golden["initial_ids"])
    learn_as_published(clip, target, initial_ids, settings, lambda ids, _: steps.append(ids.tolist()))
    assert steps == golden["step_ids"][:150].tolist()


def test_the_default_is_above_the_authors_best(clip: Clip) -> None:
    shipped = np.load(GOLDEN / "trajectories.npz")
    cases = ("one_image", "several_images")
    targets = [Target(torch.from_numpy(shipped[f"{case}/targets"])) for case in cases]
    for case, prompt in zip(cases, learn_for_targets(clip, targets, cases, PezSettings(tokens=8)), strict=True):
        assert prompt.similarity > shipped[f"{case}/step_similarity"].max(), case
