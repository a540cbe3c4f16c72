"""Swap rounds: every candidate truly scored, other orders tried, and nothing made worse."""

import itertools

import torch

import pez
from pez.methods.swaps import orders, swap_rounds
from pez.objectives.clip import ClipObjective


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
