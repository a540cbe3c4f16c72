"""Swap rounds: every candidate truly scored, other orders tried, and nothing made worse."""

import itertools

import torch

import pez
from pez.methods.swaps import orders, orders_by_start, swap_rounds
from pez.objectives.clip import ClipObjective
from pez.objectives.objective import Objective


def test_orders_are_all_moves_and_exchanges_once() -> None:
    assert sorted(orders(3)) == [(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    assert len(set(orders(8))) == len(orders(8)) == 70
    assert all(sorted(order) == list(range(8)) for order in orders(8))
    assert orders(1) == []
    assert len(orders(75)) == 256


def test_rounds_never_lower_a_score_and_other_orders_raise_it(demo_clip: pez.Clip, images: list) -> None:
    vocabulary = demo_clip.vocabulary(pez.PezSettings())
    objective = ClipObjective(demo_clip.encoder(8))
    target = demo_clip.image_features(images[:16])
    ids = torch.stack([vocabulary.random_ids(8, torch.Generator().manual_seed(i)) for i in range(16)])
    seen: list[torch.Tensor] = [objective.score(vocabulary.embed(ids), target)]
    chosen: list[torch.Tensor] = []

    def look(ids: torch.Tensor, score: torch.Tensor) -> None:
        assert torch.allclose(objective.score(vocabulary.embed(ids), target), score, atol=1e-5)
        seen.append(score)
        chosen.append(ids)

    swap_rounds(objective, vocabulary, ids, target, rounds=16, candidates=8, on_round=look)
    assert all((later >= earlier - 1e-6).all() for earlier, later in itertools.pairwise(seen))
    # A round changes one position, but for the last of a turn, which changes the order as well.
    changed = [(after != before).sum(-1).max().item() for before, after in itertools.pairwise(chosen)]
    assert [i for i, most in enumerate(changed, 1) if most > 1] == [7, 15]


class Whole(Objective):
    """Computes every prompt from its first token on."""

    def __init__(self, objective: ClipObjective) -> None:
        self.objective = objective

    def score(self, soft: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        return self.objective.score(soft, batch)


def test_what_is_shared_changes_no_choice_and_no_score(demo_clip: pez.Clip, images: list) -> None:
    vocabulary = demo_clip.vocabulary(pez.PezSettings(vocabulary="full", untrained_tokens=True))
    objective = ClipObjective(demo_clip.encoder(8))
    target = demo_clip.image_features(images[:16])
    ids = torch.stack([vocabulary.random_ids(8, torch.Generator().manual_seed(i)) for i in range(16)])
    found, score = swap_rounds(objective, vocabulary, ids, target, rounds=16, candidates=16)
    expected, whole = swap_rounds(Whole(objective), vocabulary, ids, target, rounds=16, candidates=16)
    assert found.tolist() == expected.tolist()
    torch.testing.assert_close(score, whole, rtol=0, atol=1e-5)


def test_a_token_alone_scores_as_a_prompt_of_one_token(demo_clip: pez.Clip, images: list) -> None:
    target = demo_clip.image_features(images[:16])
    objective = ClipObjective(demo_clip.encoder(8), demo_clip.single_tokens())
    ids = torch.tensor([[320, 1125], [320, 736], *[[2368, 518]] * 14])
    expected = torch.stack(
        [demo_clip.token_features(row.view(-1, 1)) @ goal for row, goal in zip(ids, target, strict=True)]
    )
    torch.testing.assert_close(objective.score_tokens(ids, target), expected, rtol=0, atol=1e-5)
    assert demo_clip.single_tokens().count >= 5


def test_weighted_tokens_are_nearer_to_the_image_each_by_itself(demo_clip: pez.Clip, images: list) -> None:
    vocabulary = demo_clip.vocabulary(pez.PezSettings(vocabulary="full", untrained_tokens=True))
    objective = ClipObjective(demo_clip.encoder(8), demo_clip.single_tokens())
    target = demo_clip.image_features(images[:16])
    ids = torch.stack([vocabulary.random_ids(8, torch.Generator().manual_seed(i)) for i in range(16)])
    alone, scores = {}, {}
    for weight in (0.0, 1.0):
        found, score = swap_rounds(objective, vocabulary, ids, target, 16, 16, token_weight=weight)
        alone[weight] = objective.score_tokens(found, target).mean(1)
        scores[weight] = score
        torch.testing.assert_close(objective.score(vocabulary.embed(found), target), score, rtol=0, atol=1e-5)
    assert alone[1.0].mean() > alone[0.0].mean() + 0.05
    assert scores[1.0].mean() < scores[0.0].mean()


def test_orders_are_grouped_by_the_first_position_that_changes() -> None:
    for tokens in (1, 2, 8, 75):
        groups = orders_by_start(tokens)
        assert sorted(order for _, part in groups for order in part) == sorted(orders(tokens))
        assert len(groups) <= 8
        assert all(order[:start] == tuple(range(start)) for start, part in groups for order in part)
