"""Which tokens a model was trained on.

A vocabulary has tokens that no training text contained. Their embeddings are still those that training began with, made smaller
by weight decay. The model has learned nothing about them, and yet a search finds some that raise its score: other models do
not agree (figures in EXPERIMENTS.md, "Tokens that a model was never trained on").

Tokens of single bytes that UTF-8 never has, such as 0xC0 and 0xFF, cannot be in any text. The lengths of their embeddings show
what an untrained one looks like: a token counts as trained if its embedding is clearly longer than those.

Source: Land and Bartolo 2024, "Fishing for Magikarp", arXiv:2405.05417, which finds under-trained tokens by their embeddings,
compared with those of tokens that are known to be unused.
"""

from typing import Any

import torch
from torch import Tensor

_NEVER = (0xC0, 0xC1, *range(0xF5, 0x100))  # bytes that are in no UTF-8 text
_LEAST = 8  # tokens that show what an untrained embedding looks like
_DEVIATIONS = 4.0  # a longer embedding is a trained one
_CERTAIN = 8.0  # if none is longer than this, the weights are random and nothing is known


def impossible_tokens(tokenizer: Any) -> list[int]:
    """Ids of the tokens that no text contains; none for a tokenizer without tokens of single bytes."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    if hasattr(inner, "byte_encoder"):  # CLIP's: bytes inside of words, and at their ends
        ids, names = inner.encoder, [inner.byte_encoder[byte] + end for byte in _NEVER for end in ("", "</w>")]
    else:
        ids = inner.get_vocab() if hasattr(inner, "get_vocab") else {}
        names = [f"<0x{byte:02X}>" for byte in _NEVER]
    return [ids[name] for name in names if name in ids]


def trained_tokens(tokenizer: Any, embedding: Tensor) -> Tensor:
    """Find the tokens that a model was trained on.

    Args:
        embedding: (vocab, width) float.

    Returns:
        (vocab,) bool; all of them if the tokenizer has no impossible tokens, or if the weights are random.
    """
    never = [i for i in impossible_tokens(tokenizer) if i < len(embedding)]
    lengths = embedding.detach().double().norm(dim=-1)
    everything = torch.ones_like(lengths, dtype=torch.bool)
    if len(never) < _LEAST:
        return everything
    middle, spread = lengths[never].mean(), lengths[never].std()
    if lengths.max() <= middle + _CERTAIN * spread:
        return everything
    trained: Tensor = lengths > middle + _DEVIATIONS * spread
    return trained
