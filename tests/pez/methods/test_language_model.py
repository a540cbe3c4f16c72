"""Searches for prompts of a language model."""

import statistics
from typing import Any, get_args

import pytest
import torch

from pez.classification import Examples, SearchMethod, SearchSettings, Template, read_verbalizer
from pez.demo.reviews import labelled_reviews
from pez.methods.language_model import Search, _State, adafactor
from pez.methods.language_starts import Starts
from pez.models.language_model import load_language_model
from pez.objectives.language_model import Classification, Encoded

WORDS = read_verbalizer("negative=terrible,positive=great")


@pytest.fixture(scope="module")
def objective() -> Classification:
    return Classification(load_language_model("demo-lm"), Template(), WORDS)


@pytest.fixture(scope="module")
def parts(objective: Classification) -> list[Encoded]:
    """Train, held-out and test examples."""
    rows: list[Any] = labelled_reviews(800)
    return [objective.encode(part) for part in Examples.of(rows, WORDS, "the test").split(60, 160)]


def search(
    objective: Classification,
    parts: list[Encoded],
    method: SearchMethod,
    seed: int = 0,
    restarts: int = 1,
    **settings: Any,
) -> Search:
    chosen = SearchSettings(**{"steps": 6, "evaluate_every": 3, "search_examples": 32, "candidates": 16, **settings})
    return Search(objective, parts[0], parts[1], chosen, method, seed, range(restarts))


def starts(objective: Classification, train: Encoded, tokens: int) -> Starts:
    return Starts(objective, train, tokens, torch.Generator().manual_seed(0))


def test_the_default_beats_the_empty_prompt_and_random_words_by_10_points(
    objective: Classification, parts: list[Encoded]
) -> None:
    test, gained = parts[2], []
    empty = objective.measure("", test).accuracy
    for seed in range(3):
        best = search(objective, parts, "default", seed).run()[0]
        drawn = [
            objective.model.vocabulary.random_ids(10, torch.Generator().manual_seed(100 * seed + i)) for i in range(6)
        ]
        random = statistics.fmean(
            objective.measure(objective.model.text_of(ids.tolist()), test).accuracy for ids in drawn
        )
        gained.append(objective.measure(best.text, test).accuracy - max(empty, random))
    assert statistics.fmean(gained) > 0.1


@pytest.mark.parametrize("method", get_args(SearchMethod))
def test_a_search_returns_a_text_for_every_restart_and_can_be_repeated(
    objective: Classification, parts: list[Encoded], method: SearchMethod
) -> None:
    found = search(objective, parts, method, restarts=2).run()
    assert found == search(objective, parts, method, restarts=2).run()
    assert len(found) == 2
    for candidate in found:
        assert candidate.heldout == objective.measure(candidate.text, parts[1])
    assert objective.passes > 0


def test_the_default_starts_from_demonstrations_with_words_of_each_label(
    objective: Classification, parts: list[Encoded]
) -> None:
    one = starts(objective, parts[0], 8)
    texts = {one.demonstration() for _ in range(20)}
    assert len(texts) > 10
    for text in texts:
        assert len(objective.model.encode([text])[0]) <= 8
        assert "It was terrible" in text
        assert "It was great" in text
    typical = [{objective.model.text_of([token]) for token in suited} for suited in one.suited]
    assert {"tedious", "awful"} <= typical[0] - typical[1]
    assert {"superb", "wonderful"} <= typical[1] - typical[0]


LONG = "{} from the first scene to the very last one of the film"


def test_the_default_starts_from_short_examples_of_every_label(parts: list[Encoded], objective: Classification) -> None:
    short = {"negative": ["so slow", "so boring", "dull"], "positive": ["so funny", "superb", "wonderful"]}
    rows: list[Any] = [
        (form.format(text), label) for label, some in short.items() for text in some for form in ("{}", LONG)
    ]
    one = starts(objective, objective.encode(Examples.of(rows, WORDS, "the test")), 10)
    texts = {one.examples() for _ in range(20)}
    assert len(texts) > 2
    for text in texts:
        assert len(objective.model.encode([text])[0]) == 10
        assert "first scene" not in text
        for label, word in WORDS.items():
            assert any(f"{example} It was {word}" in text for example in short[label]), text


def test_without_short_examples_words_demonstrate_the_labels(objective: Classification, parts: list[Encoded]) -> None:
    rows: list[Any] = [(" ".join([text] * 4), label) for text, label in labelled_reviews(60)]
    train = objective.encode(Examples.of(rows, WORDS, "the test"))
    assert starts(objective, train, 8).examples().count("It was") == 2
    assert search(objective, [train, parts[1]], "default", tokens=8).starts().shape == (1, 8)


def test_demonstrations_end_as_most_texts_do(objective: Classification) -> None:
    rows: list[Any] = [(f"{text} !", label) for text, label in labelled_reviews(60)]
    train = objective.encode(Examples.of(rows, WORDS, "the test"))
    one = starts(objective, train, 12)
    assert one.mark == "!"
    assert any("! It was" in one.demonstration() for _ in range(20))


def test_updates_too_small_to_change_a_token_add_up(objective: Classification, parts: list[Encoded]) -> None:
    """AutoPrompt-SGD, which projects its state in place, stays where it is; PEZ moves."""
    moved = {}
    for method in ("pez", "autoprompt"):
        one = search(objective, parts, method, start="random", optimizer="adamw", learning_rate=0.003, steps=100)
        start = ids = one.starts()
        state = _State(objective.model.embedding[ids])
        changes = []
        for _ in range(60):
            ids = one.advance(ids, state, 100)
            one.steps += 1
            changes.append(not torch.equal(ids, start))
        assert not changes[0], "the first update alone changes no token"
        moved[method] = any(changes)
    assert moved == {"pez": True, "autoprompt": False}


def test_the_best_prompt_is_the_one_with_the_highest_heldout_accuracy(
    objective: Classification, parts: list[Encoded]
) -> None:
    one = search(objective, parts, "random")
    texts = ["river river", "honest fair", "joke river"]
    for text in texts:
        one.look(torch.tensor(objective.model.encode([text])))
    assert one.best[0] is not None
    assert one.best[0].text == "honest fair"


def test_a_budget_ends_every_method_at_the_same_cost(objective: Classification, parts: list[Encoded]) -> None:
    spent = []
    for method in ("pez", "random"):
        one = search(objective, parts, method, steps=1000, budget=0.02)
        one.run()
        spent.append(one.passes)
    assert all(0.02 <= passes < 0.023 for passes in spent)


def test_fluency_makes_prompts_less_surprising(objective: Classification, parts: list[Encoded]) -> None:
    fluent = Classification(objective.model, Template(), WORDS, fluency=0.9)
    plain, weighted = (search(o, parts, "default", steps=12, evaluate_every=12) for o in (objective, fluent))
    found = []
    for one in (plain, weighted):
        ids = one.starts()
        state = _State(objective.model.embedding[ids])
        for _ in range(12):
            ids = one.advance(ids, state, 12)
            one.steps += 1
        found.append(float(objective.surprise(objective.model, ids)))
    assert found[1] < found[0]


def test_adafactor_is_that_of_transformers() -> None:
    reference = pytest.importorskip("transformers.optimization").Adafactor
    torch.manual_seed(0)
    start, gradients = torch.randn(2, 4, 6), torch.randn(5, 2, 4, 6)
    ours, state = start.clone(), _State(start)
    for gradient in gradients:
        state.count += 1
        adafactor(ours, gradient, state.of_tokens, state.of_width, state.count, 0.3)
    for lane in range(2):
        theirs = torch.nn.Parameter(start[lane].clone())
        optimizer = reference([theirs], lr=0.3, relative_step=False, scale_parameter=False)
        for gradient in gradients:
            theirs.grad = gradient[lane].clone()
            optimizer.step()
        torch.testing.assert_close(ours[lane], theirs.detach())


def test_a_search_in_bfloat16_measures_in_float32(objective: Classification, parts: list[Encoded]) -> None:
    model = objective.model
    fast = Classification(model, Template(), WORDS, engine=model.in_bfloat16())
    found = search(fast, parts, "default").run()[0]
    assert found.heldout == objective.measure(found.text, parts[1])
    ids = torch.tensor([model.encode([found.text])[0]])
    assert fast.losses(ids, parts[0], range(8)) == pytest.approx(objective.losses(ids, parts[0], range(8)), abs=0.05)
    assert not torch.equal(fast.losses(ids, parts[0], range(8)), objective.losses(ids, parts[0], range(8)))
    _, gradient = fast.loss_and_gradient(model.embedding[ids], ids, parts[0], range(8))
    assert gradient.dtype == torch.float32
    assert gradient.abs().sum() > 0


def test_repeated_words_begin_with_one_that_is_one_token_there(
    objective: Classification, parts: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, encode = objective.model, objective.model.encode

    def longer_at_the_start(texts: list[str]) -> list[list[int]]:  # as in byte-level tokenizers
        return [
            [0, *ids] if text.lower().startswith("terrible") else ids
            for text, ids in zip(texts, encode([text.lower() for text in texts]), strict=True)
        ]

    monkeypatch.setattr(model, "encode", longer_at_the_start)
    one = starts(objective, parts[0], 4)
    assert one.repeated(["great", "terrible"]) == "great terrible great terrible"
    assert one.repeated(["terrible", "great"]) == "great terrible great terrible"
