"""Floating-point operations of the method, counted by hand: matrix products only, two operations per multiply-add."""

from torch import Tensor

from pez.methods.swaps import prompts_scored
from pez.models.clip import Clip


def baseline_step_flop(clip: Clip, tokens: int) -> float:
    """One step of the published algorithm: two forward passes and one backward over the whole context, and the projection."""
    rows = clip.context_length
    return 3 * forward_flop(clip, rows, rows, rows) + projection_flop(clip, tokens, clip.ordinary_tokens())


def engine_step_flop(clip: Clip, tokens: int, allowed: Tensor) -> float:
    """One gradient step of a lane: forward and backward over the positions that matter, and the projection."""
    rows = tokens + 1
    return 2 * forward_flop(clip, rows, rows + 1, 1) + projection_flop(clip, tokens, allowed)


def swaps_flop(clip: Clip, tokens: int, rounds: int, candidates: int, allowed: Tensor) -> float:
    """All rounds of swaps of a lane: per round, forward and backward, the gains of one position, the ends of the candidates."""
    rows = tokens + 1
    scored = prompts_scored(tokens, rounds, min(candidates, int(allowed.sum())))
    candidate_flop = sum(n * forward_flop(clip, rows - start, rows + 1, 1) for start, n in scored.items())
    gradients = rounds * (2 * forward_flop(clip, rows, rows + 1, 1) + projection_flop(clip, 1, allowed))
    return candidate_flop + gradients


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
