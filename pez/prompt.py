"""The result: a hard prompt and how well it does."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A learned prompt."""

    text: str
    """what a user pastes"""
    token_ids: tuple[int, ...]
    """the learned tokens; the text may come back from a tokenizer as others"""
    similarity: float
    """of the text: tokenised again and encoded in full precision; mean of weight x cosine over the targets"""
    token_similarity: float
    """the same of the token ids"""
    steps: int
    """gradient steps taken"""
