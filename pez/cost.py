"""Floating-point operations of the methods, counted by hand: matrix products only, two operations per multiply-add."""

import dataclasses

from torch import Tensor

from pez.methods import bank, gaslite, gcg
from pez.methods.shortlist import SHORTLIST, uses_shortlist
from pez.methods.swaps import prompts_scored
from pez.models.clip import Clip
from pez.settings import PezSettings
from pez.vocabulary import Vocabulary


def method_flop(clip: Clip, settings: PezSettings, vocabulary: Vocabulary) -> float:
    """A prompt by the settings' method, without what is computed once for all prompts (phrases, tokens alone)."""
    allowed, settings = vocabulary.allowed, settings.for_vocabulary(len(vocabulary.ids))
    if settings.method == "bank":
        return bank_flop(clip, settings.tokens, vocabulary)
    flop = settings.gradient_steps * step_flop(clip, settings, allowed)
    if settings.method == "soft":
        flop += projection_flop(clip, settings.tokens, allowed)
    swaps = swaps_flop(clip, settings.tokens, settings.rounds, settings.tried, allowed)
    return settings.searches * flop + settings.improved * swaps


def within(clip: Clip, settings: PezSettings, vocabulary: Vocabulary, flop: float) -> PezSettings:
    """The settings with as many steps as a budget pays, at least one; the method bank has no steps, and keeps its own cost."""
    if settings.method == "bank":
        return settings
    settings = settings.for_vocabulary(len(vocabulary.ids))
    searches, step = settings.searches, step_flop(clip, settings, vocabulary.allowed)
    rest = method_flop(clip, settings, vocabulary) - searches * settings.gradient_steps * step
    steps = int((flop - rest) / (searches * step))
    return dataclasses.replace(settings, steps=max(1, steps), restarts=searches)


def step_flop(clip: Clip, settings: PezSettings, allowed: Tensor) -> float:
    """One step of a method's first phase."""
    tokens, rows = settings.tokens, settings.tokens + 1
    forward, project = forward_flop(clip, rows, rows + 1, 1), projection_flop(clip, tokens, allowed)
    method, count = settings.method, int(allowed.sum())
    if method == "random":
        return forward
    if method == "soft":
        return 2 * forward
    if method == "gcg":
        places = gcg.positions_of(tokens, settings.tried).items()
        scored = sum(float(part.stop - part.start) * forward_flop(clip, rows - i, rows + 1, 1) for i, part in places)
        return 2 * forward + project * len(places) / tokens + scored
    if method == "gaslite":
        refined = gaslite.positions(tokens)
        tails = [forward_flop(clip, rows - i, rows + 1, 1) for i in range(tokens)]
        scored = min(settings.tried, count) * sum(tails) * refined / tokens
        return (2 * gaslite.VARIATIONS + refined) * forward + project * refined / tokens + scored
    if method == "default" and uses_shortlist(settings, count):
        return 2 * forward + project * (1 / settings.project_every + SHORTLIST / count)
    return engine_step_flop(clip, tokens, allowed)


def bank_flop(clip: Clip, tokens: int, vocabulary: Vocabulary) -> float:
    """All rounds of a chain of phrases of the mean length, scored with those that stay after the ranking."""
    phrases = vocabulary.phrases
    kept, length = min(bank.KEPT, len(phrases)), max(1, round(sum(map(len, phrases)) / len(phrases)))
    before = range(length, tokens - length + 1, length)
    return sum(
        kept * forward_flop(clip, length + 1, n + length + 2, 1) + forward_flop(clip, n, n + 1, 1) for n in before
    )


def baseline_step_flop(clip: Clip, tokens: int) -> float:
    """One step of the published algorithm: two forward passes and one backward over the whole context, and the projection."""
    rows = clip.context_length
    return 3 * forward_flop(clip, rows, rows, rows) + projection_flop(clip, tokens, clip.ordinary_tokens())


def engine_step_flop(clip: Clip, tokens: int, allowed: Tensor) -> float:
    """One gradient step of a lane: forward and backward over the positions that matter, and a search of all tokens."""
    rows = tokens + 1
    return 2 * forward_flop(clip, rows, rows + 1, 1) + projection_flop(clip, tokens, allowed)


def swaps_flop(clip: Clip, tokens: int, rounds: int, candidates: int, allowed: Tensor) -> float:
    """All rounds of swaps of a lane: per round, forward and backward, the gains of one position, the ends of the candidates."""
    rows = tokens + 1
    scored = prompts_scored(tokens, rounds, min(candidates, int(allowed.sum())))
    candidate_flop = sum(n * forward_flop(clip, rows - start, rows + 1, 1) for start, n in scored.items())
    gradients = rounds * (2 * forward_flop(clip, rows, rows + 1, 1) + projection_flop(clip, 1, allowed))
    return candidate_flop + gradients


def token_flop(clip: Clip) -> float:
    """The feature of a single token, as a prompt of its own; it is computed once for all prompts."""
    return forward_flop(clip, 2, 3, 1)


def forward_flop(clip: Clip, rows: int, keys: int, last: int) -> float:
    """One forward pass through the text tower; a backward pass to the inputs costs the same.

    Args:
        rows: positions computed.
        keys: positions that attention sees.
        last: positions of the last layer for which queries and MLPs are computed.
    """
    blocks = clip.tower.transformer.resblocks
    width: int = clip.tower.token_embedding.embedding_dim
    hidden: int = blocks[0].mlp.c_fc.out_features

    def layer(queried: int) -> float:
        keys_values = 4 * rows * width * width
        query_out = 4 * queried * width * width
        return keys_values + query_out + 4 * queried * width * hidden + 4 * queried * keys * width

    return float((len(blocks) - 1) * layer(rows) + layer(last))


def projection_flop(clip: Clip, tokens: int, allowed: Tensor) -> float:
    """Products of soft tokens with the allowed rows of the vocabulary."""
    width: int = clip.tower.token_embedding.embedding_dim
    return 2.0 * tokens * width * int(allowed.sum())
