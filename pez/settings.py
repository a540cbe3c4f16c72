"""What a user may choose, importable without torch."""

import dataclasses
from typing import Literal

ALGORITHM = 2
"""raised whenever the same settings give other prompts than before: an output is not finished by another version"""

Precision = Literal["fp32", "bf16", "fp64"]
GeneratorPrecision = Literal["fp32", "fp16", "bf16"]
Scheduler = Literal["dpm++", "euler", "ddim", "model"]


@dataclasses.dataclass(frozen=True)
class PezSettings:
    """Settings of PEZ; with the image and the model they fix a prompt.

    Source: arXiv:2302.03668, section 4, for the learning rate and the weight decay.
    """

    tokens: int = 8
    """tokens of a prompt; what a prompt generates is best at 8 to 16"""
    steps: int = 500
    """gradient steps of one start"""
    swaps: int = 24
    """rounds of token swaps after the gradient steps, each truly scored"""
    candidates: int = 32
    """tokens scored in each round of swaps"""
    exact: bool = False
    """the algorithm of the paper alone: no swaps, and tokens that do not last as text as well"""
    restarts: int = 1
    """independent starts; the best prompt of all is kept"""
    seed: int = 0
    learning_rate: float = 0.1
    weight_decay: float | None = None
    """default = 0.1, as published, with exact; else 0.5: soft prompts that forget faster find better words"""
    vocabulary: Literal["model", "words", "full"] = "model"
    """tokens that may be chosen: model = what the model recommends (the demo: its caption words; others: words),
    words = only tokens that are whole words of letters, full = all that last as text (with exact: all but the special ones)"""
    blocklist: tuple[str, ...] = ()
    """words that no prompt may hold; * and ? match any letters and any letter"""
    allowlist: tuple[str, ...] = ()
    """if given, the only words that a prompt may hold"""

    def __post_init__(self) -> None:
        for name, least in {"tokens": 1, "steps": 1, "restarts": 1, "swaps": 0, "candidates": 1}.items():
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name} is {value}; expected {least} or more")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; expected more than 0")
        if self.decay < 0:
            raise ValueError(f"weight_decay is {self.decay}; expected 0 or more")

    @property
    def decay(self) -> float:
        """The weight decay to use."""
        return self.weight_decay if self.weight_decay is not None else 0.1 if self.exact else 0.5
