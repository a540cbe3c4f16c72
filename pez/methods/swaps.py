"""Swap rounds: improve hard prompts token by token, with every candidate truly scored.

PEZ's walk over soft prompts never settles; its best iterate is near a good prompt and seldom at one. From there, for each
prompt, one position a round:

1. The gradient at the prompt ranks all tokens for the position by first-order gain, g . (e_new - e_old).
2. The prompts with the best `candidates` of them are scored.
3. The best of those replaces the prompt if it is better.

After each turn through the positions the same words are tried in other orders: every exchange of two tokens and every move of
one token to another place. No gradient shows these, and they lead out of prompts that no single swap improves.

Source: the ranking is HotFlip's (arXiv:1712.06751) and AutoPrompt's (arXiv:2010.15980), the true evaluation GCG's
(arXiv:2307.15043).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from pez.objectives.objective import Objective
from pez.settings import PezSettings
from pez.tasks import Learned, Step
from pez.vocabulary import Vocabulary

_ROWS_AT_ONCE = 1024  # candidates scored in one batch
_MOST_ORDERS = 256  # orders tried in one turn


def improve(
    objective: Objective,
    vocabulary: Vocabulary,
    walked: list[Learned],
    settings: PezSettings,
    lanes: int,
    on_step: Callable[[Step], None],
) -> list[Learned]:
    """Improve the prompts of a batch by the rounds of swaps that the settings say.

    Args:
        walked: at most `lanes` prompts.
        lanes: prompts computed side by side; the last one is repeated until there are so many, since shapes must not change.
        on_step: called after each round.

    Returns:
        the prompts in their order, with new ids and scores.
    """
    device = vocabulary.embedding.device
    filled = [*walked, *[walked[-1]] * (lanes - len(walked))]
    ids = torch.stack([learned.token_ids for learned in filled]).to(device)
    target = torch.stack([learned.task.target for learned in filled]).to(device)
    tasks = [learned.task for learned in walked]

    def show(ids: Tensor, score: Tensor) -> None:
        ids, score = ids[: len(tasks)], score[: len(tasks)]
        on_step(Step(tasks, ids, score, ids, score))

    ids, score = swap_rounds(objective, vocabulary, ids, target, settings.swaps, settings.candidates, show)
    found = zip(walked, ids.cpu(), score.tolist(), strict=False)
    return [dataclasses.replace(learned, token_ids=row, score=value) for learned, row, value in found]


def swap_rounds(
    objective: Objective,
    vocabulary: Vocabulary,
    ids: Tensor,
    target: Tensor,
    rounds: int,
    candidates: int,
    on_round: Callable[[Tensor, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Improve prompts by swaps.

    Args:
        ids: (lanes, tokens) int64 prompts to start from.
        target: (lanes, ...) one target a lane.
        rounds: swaps tried in each prompt; positions take turns, and orders are tried at the end of each turn.
        candidates: tokens scored in each round.
        on_round: called with ids and scores after each round.

    Returns:
        (lanes, tokens) int64 prompts and (lanes,) float scores; lane i depends on ids[i] and target[i] alone.
    """
    tokens = ids.shape[1]
    embeddings = vocabulary.embed(vocabulary.ids)  # (allowed, width)
    count = min(candidates, len(vocabulary.ids))
    changed_orders = torch.tensor(orders(tokens), device=ids.device)  # (orders, tokens)
    best = torch.full(ids.shape[:1], -torch.inf, dtype=embeddings.dtype, device=ids.device)
    for turn in range(rounds):
        position = turn % tokens
        soft = vocabulary.embed(ids).requires_grad_()
        score = objective.score(soft, target)
        (gradient,) = torch.autograd.grad(score.sum(), soft)
        with torch.no_grad():
            gain = gradient[:, position] @ embeddings.T  # (lanes, allowed); the old token's part is the same for all
            tried = ids.unsqueeze(1).repeat(1, count, 1)  # (lanes, count, tokens)
            tried[:, :, position] = vocabulary.ids[gain.topk(count, dim=-1).indices]
            ids, best = _best_of(objective, vocabulary, ids, score.detach().to(best.dtype), tried, target)
            if position == tokens - 1 and tokens > 1:
                ids, best = _best_of(objective, vocabulary, ids, best, ids[:, changed_orders], target)
            if on_round is not None:
                on_round(ids, best)
    return ids, best


def swap_forwards(tokens: int, rounds: int, candidates: int) -> int:
    """Passes through the text tower that the rounds cost a prompt, a pass back counted as one."""
    return rounds * (2 + candidates) + rounds // tokens * len(orders(tokens))


@functools.cache
def orders(tokens: int) -> list[tuple[int, ...]]:
    """Changed orders of so many tokens: one token moved or two exchanged, near ones first, each order once."""
    found: dict[tuple[int, ...], None] = {}
    for distance, start in itertools.product(range(1, tokens), range(tokens)):
        for end in (start + distance, start - distance):
            if 0 <= end < tokens:
                moved = list(range(tokens))
                moved.insert(end, moved.pop(start))
                exchanged = list(range(tokens))
                exchanged[start], exchanged[end] = exchanged[end], exchanged[start]
                found.update({tuple(moved): None, tuple(exchanged): None})
    return list(found)[:_MOST_ORDERS]


def _best_of(
    objective: Objective, vocabulary: Vocabulary, ids: Tensor, score: Tensor, tried: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Each lane's best prompt: the one it has, with its score, or one of those tried, (lanes, candidates, tokens)."""
    count = tried.shape[1]
    prompts_per_batch = max(1, _ROWS_AT_ONCE // count)
    parts = [
        objective.score(vocabulary.embed(rows.flatten(0, 1)), goal.repeat_interleave(count, 0)).view(-1, count)
        for rows, goal in zip(tried.split(prompts_per_batch), target.split(prompts_per_batch), strict=True)
    ]
    top, where = torch.cat(parts).max(-1)  # (lanes,)
    better = top > score
    chosen = tried[torch.arange(len(ids), device=ids.device), where]  # (lanes, tokens)
    return torch.where(better.unsqueeze(-1), chosen, ids), torch.where(better, top.to(score.dtype), score)
