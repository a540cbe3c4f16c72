"""Swap rounds: improve hard prompts token by token, with every candidate truly scored.

PEZ's walk over soft prompts never settles; its best iterate is near a good prompt and seldom at one. From there, for each
prompt, one position a round:

1. The gradient at the prompt ranks all tokens for the position by first-order gain, g . (e_new - e_old).
2. The prompts with the best `candidates` of them are scored.
3. The best of those replaces the prompt if it is better.

Candidates are tokens that survive being written as text (`Vocabulary.lasting`), and a token that does not is replaced by the
best candidate even at a loss: what is scored is what a user pastes.

Source: the ranking is HotFlip's (arXiv:1712.06751) and AutoPrompt's (arXiv:2010.15980), the true evaluation GCG's
(arXiv:2307.15043).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pez.objective import Objective
from pez.vocabulary import Vocabulary

_ROWS_AT_ONCE = 1024  # candidates scored in one batch


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
        rounds: swaps tried in each prompt; positions take turns.
        candidates: tokens scored in each round.
        on_round: called with ids and scores after each round.

    Returns:
        (lanes, tokens) int64 prompts and (lanes,) float scores; lane i depends on ids[i] and target[i] alone.
    """
    lanes, tokens = ids.shape
    choice = vocabulary.lasting_ids  # (choice,)
    embeddings = vocabulary.embed(choice)  # (choice, width)
    count = min(candidates, len(choice))
    at_once = max(1, _ROWS_AT_ONCE // count)
    best = torch.full((lanes,), -torch.inf, dtype=embeddings.dtype, device=ids.device)
    for turn in range(rounds):
        position = turn % tokens
        soft = vocabulary.embed(ids).requires_grad_()
        score = objective.score(soft, target)
        (gradient,) = torch.autograd.grad(score.sum(), soft)
        with torch.no_grad():
            gain = gradient[:, position] @ embeddings.T  # (lanes, choice); the old token's part is the same for all
            new = choice[gain.topk(count, dim=-1).indices]  # (lanes, count)
            tried = ids.unsqueeze(1).repeat(1, count, 1)
            tried[:, :, position] = new
            parts = [
                objective.score(vocabulary.embed(some.flatten(0, 1)), goal.repeat_interleave(count, 0)).view(-1, count)
                for some, goal in zip(tried.split(at_once), target.split(at_once), strict=True)
            ]
            top, where = torch.cat(parts).max(-1)  # (lanes,)
            forced = ~vocabulary.lasting[ids[:, position]]
            swapped = (top > score) | forced
            best = torch.where(swapped, top, score.detach()).to(best.dtype)
            ids = torch.where(
                swapped.unsqueeze(-1), tried.gather(1, where.view(-1, 1, 1).expand(-1, 1, tokens))[:, 0], ids
            )
            if on_round is not None:
                on_round(ids, best)
    return ids, best
