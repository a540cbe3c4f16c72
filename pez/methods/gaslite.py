"""GASLITE-like search: an averaged gradient, from which several positions are refined one after another.

In each round, for each prompt:

1. The gradient is averaged over `VARIATIONS` copies of the prompt, each with one random position set to a random token.
2. It ranks all tokens for every position. Positions are visited in random order, at most `POSITIONS` of them.
3. At each, the prompts with the best `candidates` tokens are scored, and the best replaces the prompt if it is better.

Source: Ben-Tov and Sharif 2024, arXiv:2412.20953, Algorithm 1 (50 variations, 128 candidates, 20 positions).
"""

import torch
from torch import Tensor

from pez.methods.gcg import improved, objective_score, show
from pez.methods.phase import OnStep, score_tried, side_by_side
from pez.objectives.objective import Objective
from pez.seeds import generator_for
from pez.settings import PezSettings
from pez.tasks import Learned
from pez.vocabulary import Vocabulary

VARIATIONS = 50
POSITIONS = 20


def gaslite(
    objective: Objective,
    vocabulary: Vocabulary,
    prompts: list[Learned],
    settings: PezSettings,
    lanes: int,
    on_step: OnStep,
) -> list[Learned]:
    """Search from the prompts given; see `phase.Search`."""
    ids, target, tasks = side_by_side(prompts, lanes, vocabulary.embedding.device)
    draws = [generator_for(settings.seed, f"variations|{task.key}", 0) for task in tasks]
    rounds = generator_for(settings.seed, "positions", 0)  # the same in all lanes, so that they share a beginning
    embeddings = vocabulary.embed(vocabulary.ids)  # (allowed, width)
    count = min(settings.tried, len(vocabulary.ids))
    rows = torch.arange(len(ids), device=ids.device)
    score = objective_score(objective, vocabulary, ids, target)
    for _ in range(settings.gradient_steps):
        gradient = averaged_gradient(objective, vocabulary, ids, target, draws)
        for position in torch.randperm(settings.tokens, generator=rounds)[: positions(settings.tokens)].tolist():
            with torch.no_grad():
                _, kept = objective.score_and_keep(vocabulary.embed(ids), target)
                ranked = (gradient[:, position] @ embeddings.T).topk(count, dim=-1).indices
                tried = ids.unsqueeze(1).repeat(1, count, 1)  # (lanes, count, tokens)
                tried[:, :, position] = vocabulary.ids[ranked]
                top, where = score_tried(objective, vocabulary, kept, position, tried, target).to(score.dtype).max(-1)
                better = top > score
                ids = torch.where(better.unsqueeze(-1), tried[rows, where], ids)
                score = torch.where(better, top, score)
        show(on_step, prompts, ids, score, ids, score)
    return improved(prompts, ids, score, settings.gradient_steps)


def averaged_gradient(
    objective: Objective, vocabulary: Vocabulary, ids: Tensor, target: Tensor, draws: list[torch.Generator]
) -> Tensor:
    """(lanes, tokens, width) gradient of the score, averaged over variations of one token.

    The method also normalizes it; that does not change the ranks.

    Args:
        draws: one generator a lane.
    """
    lanes, tokens = ids.shape
    highs = (tokens, len(vocabulary.ids))
    drawn = torch.stack(  # (lanes, 2, variations): positions and tokens
        [torch.stack([torch.randint(high, (VARIATIONS,), generator=draw) for high in highs]) for draw in draws]
    ).to(ids.device)
    total = torch.zeros_like(vocabulary.embed(ids))
    rows = torch.arange(lanes, device=ids.device)
    for i in range(VARIATIONS):
        varied = ids.clone()
        varied[rows, drawn[:, 0, i]] = vocabulary.ids[drawn[:, 1, i]]
        soft = vocabulary.embed(varied).requires_grad_()
        (gradient,) = torch.autograd.grad(objective.score(soft, target).sum(), soft)
        total += gradient
    return total / VARIATIONS


def positions(tokens: int) -> int:
    """Positions refined in a round."""
    return min(POSITIONS, tokens)
