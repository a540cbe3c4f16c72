"""Every method: better than random search at equal cost, its own formula, and the promises that hold for all."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import pez
from pez import cost
from pez.demo import scenes
from pez.learn import engine_for
from pez.methods.autoprompt import AutoPrompt
from pez.methods.fluentprompt import FluentPrompt
from pez.methods.gaslite import VARIATIONS, averaged_gradient
from pez.methods.gcg import positions_of
from pez.methods.names import TRAITS, Method
from pez.methods.phase import started
from pez.objectives.clip import ClipObjective
from pez.seeds import generator_for
from pez.tasks import Learned, Step, Task

METHODS = get_args(Method)
BANK = scenes.phrases()
SMALL: dict[Method, dict[str, Any]] = {
    "default": {"steps": 10, "swaps": 8},
    "gcg": {"steps": 8},
    "gaslite": {"steps": 1},
    "bank": {"bank": BANK},
}
TOKENS = 6


def small(method: Method, **settings: object) -> pez.PezSettings:
    return pez.PezSettings(**{"method": method, "tokens": TOKENS, "steps": 20, **SMALL.get(method, {}), **settings})


@pytest.fixture(scope="module")
def targets(demo_clip: pez.Clip, images: list[Image.Image]) -> Tensor:
    return demo_clip.image_features(images[:20])


def learn(clip: pez.Clip, settings: pez.PezSettings, tasks: list[Task]) -> dict[str, Learned]:
    engine = engine_for(clip, settings, 32)
    return {learned.task.key: learned for finished in engine.run(tasks) for learned in finished}


def mean_score(clip: pez.Clip, settings: pez.PezSettings, targets: Tensor) -> float:
    found = learn(clip, settings, [Task(f"{i}", target) for i, target in enumerate(targets)])
    return sum(learned.score for learned in found.values()) / len(found)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("random", "soft")])
def test_a_method_beats_random_search_at_equal_cost(demo_clip: pez.Clip, targets: Tensor, method: Method) -> None:
    settings = small(method)
    flop = cost.method_flop(demo_clip, settings, demo_clip.vocabulary(settings))
    other = small("random")
    other = cost.within(demo_clip, other, demo_clip.vocabulary(other), flop)
    assert mean_score(demo_clip, settings, targets) > mean_score(demo_clip, other, targets) + 0.05


@pytest.mark.parametrize("method", METHODS)
def test_a_prompt_of_any_method_depends_on_its_task_alone(demo_clip: pez.Clip, targets: Tensor, method: Method) -> None:
    settings = small(method)
    tasks = [Task(f"{i}", target) for i, target in enumerate(targets)]
    together, backwards = learn(demo_clip, settings, tasks), learn(demo_clip, settings, tasks[::-1])
    alone = learn(demo_clip, settings, tasks[17:18])["17"]
    for other in (together["17"], backwards["17"]):
        assert torch.equal(alone.token_ids, other.token_ids)
        assert (alone.score, alone.soft_score) == (other.score, other.soft_score)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "pez"])
def test_texts_of_any_method_read_back_and_hold_no_blocked_word(
    demo_clip: pez.Clip, images: list[Image.Image], method: Method
) -> None:
    free = pez.learn_prompts(demo_clip, images[:8], small(method))
    word = max((w for p in free for w in p.text.split()), key=[w for p in free for w in p.text.split()].count)
    prompts = pez.learn_prompts(demo_clip, images[:8], small(method, blocklist=(word,)))
    assert all(word not in prompt.text.split() for prompt in prompts)
    wide = small(method, vocabulary="full", untrained_tokens=True)
    full = () if method == "bank" else pez.learn_prompts(demo_clip, images[:8], wide)
    for prompt in (*prompts, *full):
        assert [list(prompt.token_ids)] == demo_clip.tokens.read([prompt.text])
        assert prompt.similarity == pytest.approx(prompt.token_similarity, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_counted_operations_of_a_method_are_those_done(demo_clip: pez.Clip, targets: Tensor, method: Method) -> None:
    settings = small(method, restarts=2 if "restarts" in TRAITS[method].uses else 1)
    vocabulary = demo_clip.vocabulary(settings)
    tasks = [Task(f"{i}", target) for i, target in enumerate(targets[:16])]
    learn(demo_clip, settings, tasks[:1])  # what is computed once: prefixes, the check of the encoder
    with FlopCounterMode(display=False) as counter:
        learn(demo_clip, settings, tasks)
    counted = 16 * cost.method_flop(demo_clip, settings, vocabulary)
    # Chains end when no phrase helps, so they cost at most what is counted, and phrases are ranked once for all.
    low, high = (0.3, 1.3) if method == "bank" else (0.9, 1.1)
    assert low * counted < counter.get_total_flops() < high * counted


def test_a_budget_buys_as_many_steps_as_fit(demo_clip: pez.Clip) -> None:
    cases: list[tuple[Method, int]] = [("default", 2), ("pez", 1), ("pez", 3), ("soft", 2)]
    cases += [("gcg", 1), ("gaslite", 1), ("random", 1)]
    for method, restarts in cases:
        settings = small(method, restarts=restarts)
        vocabulary = demo_clip.vocabulary(settings)
        chosen = cost.within(demo_clip, settings, vocabulary, 1e9)
        more = dataclasses.replace(chosen, steps=chosen.gradient_steps + 1)
        assert cost.method_flop(demo_clip, chosen, vocabulary) <= 1e9 < cost.method_flop(demo_clip, more, vocabulary)


def walked(
    clip: pez.Clip, kind: type[AutoPrompt], settings: pez.PezSettings, target: Tensor
) -> tuple[AutoPrompt, Tensor]:
    """A walk after its first step, and the (tokens, width) gradient that it saw."""
    vocabulary, objective = clip.vocabulary(settings), ClipObjective(clip.encoder(settings.tokens))
    walk = kind(objective, vocabulary, settings, 16)
    first = started(Task("a", target), vocabulary, settings)
    walk.admit(first)
    walk.step()
    soft = vocabulary.embed(first.token_ids)[None].repeat(16, 1, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(-objective.score(soft, target.expand(16, -1)).sum(), soft)
    return walk, vocabulary.embed(first.token_ids) - settings.rate * gradient[0]


def test_autoprompt_descends_from_its_tokens(demo_clip: pez.Clip, targets: Tensor) -> None:
    settings = small("autoprompt", learning_rate=7.0)
    walk, expected = walked(demo_clip, AutoPrompt, settings, targets[0])
    torch.testing.assert_close(walk.soft[0], expected, rtol=0, atol=1e-5)
    assert torch.equal(walk.look(slice(16)).ids[0], walk.vocabulary.nearest(expected[None])[0])


def test_fluentprompt_adds_noise_that_falls_to_a_ten_thousandth(demo_clip: pez.Clip, targets: Tensor) -> None:
    settings = small("fluentprompt", learning_rate=7.0, steps=2)
    walk, expected = walked(demo_clip, FluentPrompt, settings, targets[0])
    draw = generator_for(0, "noise|a", 0)
    noise = torch.randn(expected.shape, generator=draw)
    torch.testing.assert_close(walk.soft[0], expected + (2 * 7.0) ** 0.5 * noise, rtol=0, atol=1e-4)
    look = walk.look(slice(16))
    walk.count += 1
    walk.move(slice(16), look)
    after = walk.vocabulary.embed(look.ids[0]) - 7.0 * look.gradient[0]
    noise = torch.randn(expected.shape, generator=draw)
    beta = 1e-4 ** (1 / 2)  # the second of two steps
    torch.testing.assert_close(walk.soft[0], after + (2 * 7.0 * beta) ** 0.5 * noise, rtol=0, atol=1e-4)


def test_a_soft_prompt_is_a_bound_and_little_of_it_remains(demo_clip: pez.Clip, images: list[Image.Image]) -> None:
    soft, hard = (pez.learn_prompts(demo_clip, images[:8], small(m, steps=60)) for m in ("soft", "default"))
    assert all(
        s.soft_similarity is not None and s.soft_similarity > h.similarity + 0.02
        for s, h in zip(soft, hard, strict=True)
    )
    assert all(h.soft_similarity is None for h in hard)
    assert sum(s.similarity for s in soft) < sum(h.similarity for h in hard)


def test_who_looks_on_sees_the_projections_of_a_soft_prompt(demo_clip: pez.Clip, targets: Tensor) -> None:
    seen: list[Step] = []
    engine = engine_for(demo_clip, small("soft"), 16, seen.append)
    [[learned]] = engine.run([Task("a", targets[0])])
    assert torch.equal(seen[-1].best_ids[0], learned.token_ids)
    assert seen[-1].best_score[0].item() == learned.soft_score
    assert torch.equal(learned.token_ids, learn(demo_clip, small("soft"), [Task("a", targets[0])])["a"].token_ids)


def test_random_search_keeps_the_best_of_its_draws_and_starts_where_others_start(
    demo_clip: pez.Clip, targets: Tensor
) -> None:
    seen: list[Step] = []
    settings = small("random")
    engine = engine_for(demo_clip, settings, 16, seen.append)
    [[learned]] = engine.run([Task("a", targets[0])])
    scores = torch.stack([step.score[0] for step in seen])
    assert learned.score == scores.max().item()
    assert len({tuple(step.token_ids[0].tolist()) for step in seen}) == settings.steps
    first = started(Task("a", targets[0]), demo_clip.vocabulary(settings), small("pez"))
    assert torch.equal(seen[0].token_ids[0], first.token_ids)


def test_gcg_swaps_one_token_a_round_and_returns_the_best_visited(demo_clip: pez.Clip, targets: Tensor) -> None:
    seen: list[Step] = []
    engine = engine_for(demo_clip, small("gcg", steps=30, candidates=2), 16, seen.append)
    [[learned]] = engine.run([Task("a", targets[0])])
    scores = [float(step.score[0]) for step in seen]
    assert scores != sorted(scores), "with two candidates, some round has none that is better"
    assert learned.score == max(scores)
    ids = [step.token_ids[0] for step in seen]
    assert all((a != b).sum() <= 1 for a, b in itertools.pairwise(ids))
    assert positions_of(4, 8) == {0: slice(0, 2), 1: slice(2, 4), 2: slice(4, 6), 3: slice(6, 8)}
    assert sum(part.stop - part.start for part in positions_of(8, 3).values()) == 3


def test_gaslite_averages_gradients_over_variations_of_one_token(demo_clip: pez.Clip, targets: Tensor) -> None:
    settings = small("gaslite")
    vocabulary, objective = demo_clip.vocabulary(settings), ClipObjective(demo_clip.encoder(TOKENS))
    ids = vocabulary.ids[torch.arange(16 * TOKENS).remainder(len(vocabulary.ids))].view(16, TOKENS)
    target = targets[:16]
    found = averaged_gradient(objective, vocabulary, ids, target, [generator_for(0, f"{i}", 0) for i in range(16)])
    draw = generator_for(0, "0", 0)
    places, tokens = (torch.randint(high, (VARIATIONS,), generator=draw) for high in (TOKENS, len(vocabulary.ids)))
    varied = ids[:1].repeat(VARIATIONS, 1)
    varied[torch.arange(VARIATIONS), places] = vocabulary.ids[tokens]
    soft = vocabulary.embed(varied).requires_grad_()
    (each,) = torch.autograd.grad(objective.score(soft, target[:1].expand(VARIATIONS, -1)).sum(), soft)
    torch.testing.assert_close(found[0], each.mean(0), rtol=0, atol=1e-5)


def test_a_bank_gives_chains_of_its_phrases(demo_clip: pez.Clip, images: list[Image.Image], tmp_path: Path) -> None:
    file = tmp_path / "phrases.txt"
    file.write_text("red circle\n\nblue  background\ntop left\ngreen star\n red circle\n", encoding="utf-8")
    settings = pez.PezSettings(method="bank", tokens=4, bank=(f"@{file}", "pink"))
    assert settings.bank == ("red circle", "blue background", "top left", "green star", "pink")
    for prompt in pez.learn_prompts(demo_clip, images[:8], settings):
        rest = prompt.text
        for phrase in settings.bank * 2:
            rest = rest.replace(phrase, "").strip()
        assert (rest, len(prompt.token_ids) <= 4) == ("", True)
    # With another method it is an allowlist.
    words = {word for phrase in settings.bank for word in phrase.split()}
    for prompt in pez.learn_prompts(demo_clip, images[:8], dataclasses.replace(settings, method="pez", steps=5)):
        assert set(prompt.text.split()) <= words


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "bank"}, "method is bank, but bank has no phrases"),
        ({"bank": ("@gone.txt",)}, "bank names @gone.txt, which cannot be read: No such file"),
        ({"bank": ("",)}, "bank contains ''"),
        ({"bank": ("a",), "allowlist": ("a",)}, "bank and allowlist are both given"),
        ({"method": "gcg", "restarts": 2}, "restarts is 2; expected 1, since the method gcg has one start"),
    ],
)
def test_settings_of_methods_that_mean_nothing_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(pez.UserError, match=message):
        pez.PezSettings(**settings)


def test_a_bank_whose_phrases_are_all_blocked_is_refused(demo_clip: pez.Clip) -> None:
    settings = pez.PezSettings(method="bank", bank=("red circle",), blocklist=("red",))
    with pytest.raises(pez.UserError, match="no phrase of the bank can be used, of 1"):
        demo_clip.vocabulary(settings)
