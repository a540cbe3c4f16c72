"""Phrase bank: prompts made of a user's phrases, ranked and chained as CLIP Interrogator does.

1. Every phrase is scored alone; the best `KEPT` stay, and the best of all is the prompt.
2. In each round, every phrase that still fits is appended; the best longer prompt replaces the prompt if it is better.

A round that finds no better prompt ends the search, so a prompt may have fewer tokens than the settings allow. CLIP
Interrogator joins phrases by commas; here a space joins them, because each comma would cost one of few tokens.

Source: pharmapsychotic/clip-interrogator (2,048 phrases kept, up to 32 rounds), from its description. With another method, a
bank restricts the vocabulary to the tokens of its phrases: "PEZ + Bank" of Wen et al. 2023, whose restriction is not published.
"""

import torch
from torch import Tensor

from pez.methods.phase import OnStep, side_by_side
from pez.objectives.objective import Objective
from pez.settings import PezSettings
from pez.tasks import Learned, Step
from pez.vocabulary import Vocabulary

KEPT = 2048
_ROUNDS = 32
_ROWS_AT_ONCE = 1024


def chain_phrases(
    objective: Objective,
    vocabulary: Vocabulary,
    prompts: list[Learned],
    settings: PezSettings,
    lanes: int,
    on_step: OnStep,
) -> list[Learned]:
    """Chain phrases for the targets of the prompts; what they start from does not matter. See `phase.Search`."""
    device = vocabulary.embedding.device
    _, target, _ = side_by_side(prompts, lanes, device)
    lengths = _by_length(vocabulary)
    with torch.no_grad():
        # (lanes, phrases), phrases in the order of `lengths`
        alone = torch.cat([_score_all(objective, vocabulary, ids, target) for ids in lengths.values()], 1)
        found = []
        for lane, prompt in enumerate(prompts):
            ids, score = _chained(objective, vocabulary, lengths, alone[lane], target[lane : lane + 1], settings.tokens)
            found.append(Learned(prompt.task, ids.cpu(), score, 0))
            value = torch.tensor([score], device=device)
            on_step(Step([prompt.task], ids[None], value, ids[None], value))
    return found


def _by_length(vocabulary: Vocabulary) -> dict[int, Tensor]:
    """(count, length) int64 phrases of each length."""
    device = vocabulary.embedding.device
    lengths = sorted({len(phrase) for phrase in vocabulary.phrases})
    return {n: torch.tensor([p for p in vocabulary.phrases if len(p) == n], device=device) for n in lengths}


def _score_all(objective: Objective, vocabulary: Vocabulary, ids: Tensor, target: Tensor) -> Tensor:
    """Scores of the same (count, length) prompts for every target, (lanes, count)."""
    filled = torch.cat([ids, ids[-1:].expand(-len(ids) % 16, -1)])
    parts = [objective.score_for_all(vocabulary.embed(part), target) for part in filled.split(_ROWS_AT_ONCE)]
    return torch.cat(parts, 1)[:, : len(ids)]


def _chained(
    objective: Objective, vocabulary: Vocabulary, lengths: dict[int, Tensor], alone: Tensor, target: Tensor, room: int
) -> tuple[Tensor, float]:
    """The chain of one target, (1, ...): (length,) int64 ids and its score. Computed alone, so it depends on no neighbor.

    Args:
        alone: (phrases,) float, the score of each phrase.
    """
    kept = alone >= alone.topk(min(KEPT, len(alone))).values[-1]
    sizes = [len(ids) for ids in lengths.values()]
    phrases = {n: ids[mask] for (n, ids), mask in zip(lengths.items(), kept.split(sizes), strict=True) if mask.any()}
    first = int(alone.argmax())
    ids = [row for rows in lengths.values() for row in rows][first]
    score = float(alone[first])
    for _ in range(_ROUNDS - 1):
        fitting = {n: rows for n, rows in phrases.items() if len(ids) + n <= room}
        if not fitting:
            break
        _, past = objective.score_and_keep(vocabulary.embed(ids[None]), target)
        best, chosen = max(
            (_best_of(objective, vocabulary, past, len(ids), rows, target) for rows in fitting.values()),
            key=lambda found: found[0],
        )
        if best <= score:
            break
        ids, score = torch.cat([ids, chosen]), best
    return ids, score


def _best_of(
    objective: Objective, vocabulary: Vocabulary, past: object, start: int, phrases: Tensor, target: Tensor
) -> tuple[float, Tensor]:
    """The best score of the prompt with one of the phrases, (count, length), appended, and that phrase."""
    scores = [
        objective.score_changed(past, start, vocabulary.embed(part[None]), target)[0]
        for part in phrases.split(_ROWS_AT_ONCE)
    ]
    top, where = torch.cat(scores).max(0)
    return float(top), phrases[where]
