"""Swap rounds: improve hard prompts token by token, with every candidate truly scored.

PEZ's walk over soft prompts never settles; its best iterate is near a good prompt and seldom at one. From there, for each
prompt, one position a round:

1. The gradient at the prompt ranks tokens for the position by first-order gain, g . (e_new - e_old).
2. The prompts with the best `candidates` of them are scored.
3. The best of those replaces the prompt if it is better.

After each turn through the positions the same words are tried in other orders: every exchange of two tokens and every move of
one token to another place. No gradient shows these, and they lead out of prompts that no single swap improves.

The tokens are those that the walk has visited, some two hundred for a prompt. Among all tokens of a wide vocabulary, swaps find
prompts that please this model alone: other models score them lower than the walk's (figures in EXPERIMENTS.md).

Source: the ranking is HotFlip's (arXiv:1712.06751) and AutoPrompt's (arXiv:2010.15980), the true evaluation GCG's
(arXiv:2307.15043).
"""

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from pez.fluency import Bigrams
from pez.methods.phase import score_tried
from pez.methods.seen import SeenPrompts
from pez.objectives.objective import Objective
from pez.settings import PezSettings
from pez.tasks import Learned, Step
from pez.vocabulary import Vocabulary

_ROWS_AT_ONCE = 1024  # tokens scored in one batch
_MOST_ORDERS = 256  # orders tried in one turn
_ORDER_GROUPS = 8  # batches of them, by the first position that changes


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
    seen = SeenPrompts(lanes, settings, device) if settings.candidates_kept > 1 else None
    if seen is not None:
        for lane, learned in enumerate(walked):
            seen.put(lane, learned.seen)

    def show(ids: Tensor, score: Tensor) -> None:
        ids, score = ids[: len(tasks)], score[: len(tasks)]
        on_step(Step(tasks, ids, score, ids, score, swapped=True))

    ids, score = swap_rounds(
        objective,
        vocabulary,
        ids,
        target,
        settings.rounds,
        settings.tried,
        show,
        settings.weight_of_tokens,
        _among(vocabulary, filled) if settings.swap_among == "visited" else None,
        seen,
        settings.fluency,
    )
    found = zip(walked, ids.cpu(), score.tolist(), itertools.count(), strict=False)
    return [
        dataclasses.replace(learned, token_ids=row, score=value, seen=None if seen is None else seen.of(lane))
        for learned, row, value, lane in found
    ]


def swap_rounds(
    objective: Objective,
    vocabulary: Vocabulary,
    ids: Tensor,
    target: Tensor,
    rounds: int,
    candidates: int,
    on_round: Callable[[Tensor, Tensor], None] | None = None,
    token_weight: float = 0.0,
    among: Tensor | None = None,
    seen: SeenPrompts | None = None,
    fluency: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Improve prompts by swaps.

    The value of a prompt is its score and, times `token_weight`, the mean score of its tokens, each alone. With `among`, a
    token counts at most as much as the `tokens`-th best of those.

    Args:
        ids: (lanes, tokens) int64 prompts to start from.
        target: (lanes, ...) one target a lane.
        rounds: swaps tried in each prompt; positions take turns, and orders are tried at the end of each turn.
        candidates: tokens scored in each round.
        on_round: called with ids and scores after each round.
        token_weight: 0 = the value is the score.
        among: (lanes, allowed) bool, which of the vocabulary's ids each lane may take; None = all.
        seen: gets every prompt that is scored.
        fluency: what a prompt's value loses for each nat of its surprise under the vocabulary's bigrams, in the choice of
            candidates and of the best of them.

    Returns:
        (lanes, tokens) int64 prompts and (lanes,) float scores; lane i depends on ids[i] and target[i] alone.
    """
    tokens = ids.shape[1]
    embeddings = vocabulary.embed(vocabulary.ids)  # (allowed, width)
    count = min(candidates, len(vocabulary.ids))
    reordered = [(start, torch.tensor(part, device=ids.device)) for start, part in orders_by_start(tokens)]
    score = torch.full(ids.shape[:1], -torch.inf, dtype=embeddings.dtype, device=ids.device)
    values = _TokenValues(objective, vocabulary, target, token_weight) if token_weight else None
    surprise = vocabulary.bigrams if fluency else None
    if values and among is not None:
        values.limit(among, tokens)
    for turn in range(rounds):
        position = turn % tokens
        soft = vocabulary.embed(ids).requires_grad_()
        now, kept = objective.score_and_keep(soft, target)
        (gradient,) = torch.autograd.grad(now.sum(), soft)
        with torch.no_grad():
            score = now.detach().to(score.dtype)
            gain = gradient[:, position] @ embeddings.T  # (lanes, allowed); the old token's part is the same for all
            if surprise:
                gain = gain - (fluency * surprise.surprise_of_swaps(ids, position, vocabulary.ids)).to(gain.dtype)
            if among is not None:
                gain = gain.masked_fill(~among, -torch.inf)
            ranked = gain.topk(count, dim=-1)
            swapped = vocabulary.ids[ranked.indices]  # (lanes, count)
            if among is not None:  # a lane with fewer tokens than candidates tries the token that it has
                swapped = torch.where(ranked.values > -torch.inf, swapped, ids[:, position, None])
            tried = ids.unsqueeze(1).repeat(1, count, 1)  # (lanes, count, tokens)
            tried[:, :, position] = swapped
            scores = score_tried(objective, vocabulary, kept, position, tried, target)
            # Only the swapped token's part of the mean differs.
            bonus = (values(swapped) - values(ids)[:, position, None]) / tokens if values else None
            if surprise:
                bonus = _less_surprise(surprise, fluency, ids, tried) + (0.0 if bonus is None else bonus)
            if seen is not None:
                seen.add(slice(None), tried, scores)
            ids, score = _best_of(ids, score, tried, scores, bonus)
            if position == tokens - 1 and tokens > 1:
                # What is kept is of the prompts before this round's swap, which was at the last position.
                groups = [(start, ids[:, part]) for start, part in reordered]
                scores = torch.cat([score_tried(objective, vocabulary, kept, i, part, target) for i, part in groups], 1)
                tried = torch.cat([part for _, part in groups], 1)
                if seen is not None:
                    seen.add(slice(None), tried, scores)
                bonus = _less_surprise(surprise, fluency, ids, tried) if surprise else None
                ids, score = _best_of(ids, score, tried, scores, bonus)
            if on_round is not None:
                on_round(ids, score)
    return ids, score


def _less_surprise(surprise: Bigrams, fluency: float, ids: Tensor, tried: Tensor) -> Tensor:
    """(lanes, count) float: what prompts gain by being less surprising than the lane's own."""
    return fluency * (surprise.surprise(ids).unsqueeze(-1) - surprise.surprise(tried))


def _among(vocabulary: Vocabulary, walked: list[Learned]) -> Tensor | None:
    """(lanes, allowed) bool: tokens that each prompt's walk visited, and those of a text that is shortened.

    None if a walk did not record them.
    """
    visited = [learned.visited for learned in walked if learned.visited is not None]
    if len(visited) < len(walked):
        return None
    mask = torch.zeros(len(walked), len(vocabulary.embedding), dtype=torch.bool)
    for row, ids, learned in zip(mask, visited, walked, strict=True):
        row[ids] = True
        if learned.task.own_tokens is not None:
            row[learned.task.own_tokens] = True
    return mask.to(vocabulary.ids.device)[:, vocabulary.ids]


def prompts_scored(tokens: int, rounds: int, candidates: int) -> Counter[int]:
    """How many prompts the rounds score for each lane, by the position that they are computed from."""
    scored: Counter[int] = Counter()
    for turn in range(rounds):
        scored[turn % tokens] += candidates
    for start, part in orders_by_start(tokens):
        scored[start] += rounds // tokens * len(part)
    return scored


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


def orders_by_start(tokens: int) -> list[tuple[int, list[tuple[int, ...]]]]:
    """The same orders in at most eight groups, each with a position before which it changes nothing."""
    found = sorted(orders(tokens), key=_first_changed)
    size = max(1, -(-len(found) // _ORDER_GROUPS))
    groups = [found[i : i + size] for i in range(0, len(found), size)]
    return [(_first_changed(group[0]), group) for group in groups]


def _first_changed(order: tuple[int, ...]) -> int:
    return next(i for i, place in enumerate(order) if place != i)


class _TokenValues:
    """What single tokens add to the value of a prompt, apart from the division by the number of tokens.

    A token is worth its own similarity to the target, at most that of the lane's `tokens`-th best token: so no word is worth
    repeating while there are others that describe the image.
    """

    def __init__(self, objective: Objective, vocabulary: Vocabulary, target: Tensor, weight: float) -> None:
        self.objective, self.vocabulary, self.target, self.weight = objective, vocabulary, target, weight
        self.most = torch.full((len(target), 1), torch.inf, device=target.device)  # (lanes, 1)

    def limit(self, among: Tensor, tokens: int) -> None:
        """Set the highest value from the tokens that each lane may take, (lanes, allowed) bool."""
        for lane, taken in enumerate(among):
            own = self.vocabulary.ids[taken].unsqueeze(0)
            values = self.objective.score_tokens(own, self.target[lane : lane + 1])[0]
            self.most[lane] = values.topk(min(tokens, len(values))).values[-1].to(self.most.dtype)

    def __call__(self, ids: Tensor) -> Tensor:
        """(lanes, count) int64 to (lanes, count) float."""
        lanes_per_batch = max(1, _ROWS_AT_ONCE // ids.shape[1])
        parts = zip(ids.split(lanes_per_batch), self.target.split(lanes_per_batch), strict=True)
        values = torch.cat([self.objective.score_tokens(part, goal) for part, goal in parts])
        return self.weight * values.minimum(self.most.to(values.dtype))


def _best_of(
    ids: Tensor, score: Tensor, tried: Tensor, scores: Tensor, bonus: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Each lane's prompt of the highest value, and its score: the one it has, or one of those tried.

    Args:
        tried: (lanes, count, tokens) int64.
        scores: (lanes, count) float, of those tried.
        bonus: (lanes, count) float, what those tried add to the value beside their score, less what the lane's own adds.
    """
    gained = scores.to(score.dtype) - score.unsqueeze(-1)
    if bonus is not None:
        gained = gained + bonus.to(score.dtype)
    top, where = gained.max(-1)  # (lanes,)
    rows = torch.arange(len(ids), device=ids.device)
    better = top > 0
    chosen = tried[rows, where]  # (lanes, tokens)
    return torch.where(better.unsqueeze(-1), chosen, ids), torch.where(
        better, scores[rows, where].to(score.dtype), score
    )
