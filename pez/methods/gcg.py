"""GCG-like search: rounds of gradient-ranked random swaps from a random prompt.

In each round, for each prompt:

1. The gradient at the prompt ranks all tokens for every position by first-order gain.
2. `candidates` prompts are drawn. Each has one swap: the positions are spread evenly, and the token is a random one of the best
   `top_tokens` of its position.
3. All are scored. The best of them replaces the prompt, also if it is worse. The best prompt visited is the result.

Source: Zou et al. 2023, arXiv:2307.15043, Algorithm 1 (250 to 500 steps of 512 candidates from the best 256 of 32,000 tokens).
"""

import dataclasses
import itertools

import torch
from torch import Tensor

from pez.methods.phase import OnStep, score_tried, side_by_side
from pez.objectives.objective import Objective
from pez.seeds import generator_for
from pez.settings import PezSettings
from pez.tasks import Learned, Step
from pez.vocabulary import Vocabulary

_TOP = 256  # tokens of a position to draw from
_LARGEST_SHARE = 8  # at most one in so many of the vocabulary: among few tokens, a rank must still mean something


def gcg(
    objective: Objective,
    vocabulary: Vocabulary,
    prompts: list[Learned],
    settings: PezSettings,
    lanes: int,
    on_step: OnStep,
) -> list[Learned]:
    """Search from the prompts given; see `phase.Search`."""
    ids, target, tasks = side_by_side(prompts, lanes, vocabulary.embedding.device)
    draws = [generator_for(settings.seed, f"swaps|{task.key}", 0) for task in tasks]
    embeddings = vocabulary.embed(vocabulary.ids)  # (allowed, width)
    places = positions_of(settings.tokens, settings.tried)
    top = top_tokens(len(vocabulary.ids))
    best_ids, score = ids, objective_score(objective, vocabulary, ids, target)
    best = score
    for _ in range(settings.gradient_steps):
        soft = vocabulary.embed(ids).requires_grad_()
        now, kept = objective.score_and_keep(soft, target)
        (gradient,) = torch.autograd.grad(now.sum(), soft)
        # (lanes, candidates), which of the best tokens of its position
        ranks = torch.stack([torch.randint(top, (settings.tried,), generator=draw) for draw in draws])
        with torch.no_grad():
            tried, scores = [], []
            for position, part in places.items():
                ranked = (gradient[:, position] @ embeddings.T).topk(top, dim=-1).indices  # (lanes, top)
                swapped = vocabulary.ids[ranked.gather(1, ranks[:, part].to(ranked.device))]
                prompt = ids.unsqueeze(1).repeat(1, swapped.shape[1], 1)  # (lanes, count, tokens)
                prompt[:, :, position] = swapped
                tried.append(prompt)
                scores.append(score_tried(objective, vocabulary, kept, position, prompt, target))
            score, where = torch.cat(scores, 1).to(best.dtype).max(-1)  # (lanes,)
            ids = torch.cat(tried, 1)[torch.arange(len(ids), device=ids.device), where]
            better = score > best
            best_ids, best = torch.where(better.unsqueeze(-1), ids, best_ids), torch.where(better, score, best)
        show(on_step, prompts, ids, score, best_ids, best)
    return improved(prompts, best_ids, best, settings.gradient_steps)


def top_tokens(allowed: int) -> int:
    """How many tokens of a position candidates are drawn from."""
    return min(_TOP, -(-allowed // _LARGEST_SHARE))


def positions_of(tokens: int, candidates: int) -> dict[int, slice]:
    """The candidates of each position: as many of each, up to one."""
    ends = [-(-candidates * position // tokens) for position in range(tokens + 1)]
    return {i: slice(a, b) for i, (a, b) in enumerate(itertools.pairwise(ends)) if a < b}


def objective_score(objective: Objective, vocabulary: Vocabulary, ids: Tensor, target: Tensor) -> Tensor:
    """(lanes,) scores of prompts, without a gradient, in the precision in which the best is kept."""
    with torch.no_grad():
        return objective.score(vocabulary.embed(ids), target).to(vocabulary.embedding.dtype)


def show(on_step: OnStep, prompts: list[Learned], ids: Tensor, score: Tensor, best_ids: Tensor, best: Tensor) -> None:
    """Report a round of the lanes that have a prompt of their own."""
    n = len(prompts)
    on_step(Step([prompt.task for prompt in prompts], ids[:n], score[:n], best_ids[:n], best[:n]))


def improved(prompts: list[Learned], ids: Tensor, score: Tensor, steps: int) -> list[Learned]:
    """The prompts with new ids and scores."""
    found = zip(prompts, ids.cpu(), score.tolist(), strict=False)
    return [
        dataclasses.replace(prompt, token_ids=row, score=value, steps=prompt.steps + steps)
        for prompt, row, value in found
    ]
