"""The result: a hard prompt and its similarity."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A learned prompt."""

    text: str
    """the text a user pastes"""
    token_ids: tuple[int, ...]
    """the learned tokens; tokenizing the text may give different ones"""
    similarity: float
    """of the text, tokenized again and encoded in full precision: mean of weight x cosine over the targets"""
    token_similarity: float
    """the same for the token ids"""
    steps: int
    """gradient steps taken"""
    soft_similarity: float | None = None
    """of the soft prompt that the tokens are the projection of: a bound that no text reaches; with the method soft only"""
