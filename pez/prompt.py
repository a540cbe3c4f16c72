"""The result: a hard prompt and its similarity."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A learned prompt."""

    text: str
    """the text a user pastes, with the words of the template"""
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
    model_similarities: tuple[float, ...] = ()
    """with several models: the similarity under each, whose weighted mean is `similarity`"""
    target_similarities: tuple[float, ...] = ()
    """with several targets: the cosine of the text with each, without its weight"""
    perplexity: float | None = None
    """of the text under a bigram model, if the settings have a fluency_text"""
    alternatives: "tuple[Prompt, ...]" = ()
    """with candidates_kept above 1: this prompt, then the best others that the search scored, by their similarity; texts
    that the model reads alike are one"""


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Prompts for several images; all have their similarity to each image in `target_similarities`."""

    prompts: tuple[Prompt, ...]
    """of each image alone"""
    joined: Prompt
    """these prompts one after another"""
    shared: Prompt
    """one prompt learned for all images"""
