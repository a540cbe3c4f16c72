"""What a user may choose, importable without torch."""

import dataclasses
import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any, Literal, Self, get_args

from pez.errors import UserError

ALGORITHM = 2
"""raised whenever the same settings give other prompts than before: an output is not finished by another version"""

Precision = Literal["fp32", "bf16", "fp64"]
GeneratorPrecision = Literal["fp32", "fp16", "bf16"]
Scheduler = Literal["dpm++", "euler", "ddim", "model"]
Vocabularies = Literal["model", "words", "full"]
Method = Literal["default", "pez"]


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """A CLIP, and how it computes."""

    model: str = "ViT-H-14"
    """demo, demo-judge, an open_clip name, hf-hub:ORG/REPO or local-dir:FOLDER"""
    pretrained: str = "laion2b_s32b_b79k"
    """tag or checkpoint file of an open_clip name; none = random weights"""
    precision: Precision | None = None
    """of the optimisation; default = bf16 on a GPU, fp32 on a CPU. Similarities are always measured in fp32"""
    compiled: bool = False
    """compile the text tower; for long runs on a GPU"""

    def on(self, device: str) -> Self:
        """The same, with what is not chosen as it suits a device, named like cpu or cuda:0."""
        return self if self.precision is not None else dataclasses.replace(self, precision=precision_for(device))


def precision_for(device: str) -> Precision:
    """The default precision of a device, named like cpu or cuda:0."""
    return "fp32" if device.partition(":")[0] == "cpu" else "bf16"


def lanes_for(device: str) -> int:
    """The default number of prompts learned side by side on a device, named like cpu or cuda:0."""
    return 64 if device.partition(":")[0] == "cpu" else 1024


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
    token_weight: float = 0.0
    """in the rounds of swaps, how much it counts that each token is near to the image by itself. With 0 the similarity
    alone counts: it ends higher under this model, and lower under others, generators too"""
    method: Method = "default"
    """default = PEZ and then rounds of token swaps; pez = the algorithm of the paper alone: no swaps, weight decay as
    published, and also tokens that do not survive decoding and re-encoding"""
    restarts: int = 1
    """independent starts; the best prompt of all is kept"""
    seed: int = 0
    learning_rate: float = 0.1
    weight_decay: float | None = None
    """default = 0.1, as published, for the method pez; else 0.5: soft prompts that forget faster find better words"""
    vocabulary: Vocabularies = "model"
    """tokens that may be chosen: model = what the model recommends (the demo: its caption words; others: words),
    words = only words that people write by themselves, full = all that survive decoding and re-encoding, but for the
    brackets, bars and other signs that image programs take as commands (with the method pez: all but the special ones)"""
    blocklist: tuple[str, ...] = ()
    """words that no prompt may hold, in any case and accent, also phrases and emoji; * and ? match any characters and
    any character"""
    allowlist: tuple[str, ...] = ()
    """if given, the only words that a prompt may hold, whatever the vocabulary; each one token of the model"""
    exact: dataclasses.InitVar[bool | None] = None
    """another way to say that the method is pez"""

    def __post_init__(self, exact: bool | None) -> None:
        if exact is not None:
            if not isinstance(exact, bool):
                raise UserError(f"exact is {exact!r}; expected True or False")
            _set(self, "method", "pez" if exact else "default")
        if self.method not in get_args(Method):
            raise UserError(f"method is {self.method!r}; expected one of {', '.join(get_args(Method))}")
        least = {"tokens": 1, "steps": 1, "restarts": 1, "swaps": 0, "candidates": 1, "seed": None}
        for name, bound in least.items():
            _set(self, name, _whole(name, getattr(self, name), bound))
        _set(self, "learning_rate", _number("learning_rate", self.learning_rate))
        if not self.learning_rate > 0:
            raise UserError(f"learning_rate is {self.learning_rate}; expected more than 0")
        _set(self, "token_weight", _number("token_weight", self.token_weight))
        if self.token_weight < 0:
            raise UserError(f"token_weight is {self.token_weight}; expected 0 or more")
        if self.weight_decay is not None:
            _set(self, "weight_decay", _number("weight_decay", self.weight_decay))
        if self.decay < 0:
            raise UserError(f"weight_decay is {self.decay}; expected 0 or more")
        if self.vocabulary not in get_args(Vocabularies):
            raise UserError(f"vocabulary is {self.vocabulary!r}; expected one of {', '.join(get_args(Vocabularies))}")
        for name in ("blocklist", "allowlist"):
            _set(self, name, _words(name, getattr(self, name)))

    @property
    def decay(self) -> float:
        """The weight decay to use."""
        return self.weight_decay if self.weight_decay is not None else 0.1 if self.method == "pez" else 0.5

    @property
    def walk_steps(self) -> int:
        """Gradient steps of a prompt, over all restarts."""
        return self.steps * self.restarts

    @property
    def rounds(self) -> int:
        """Rounds of swaps of a prompt: 0 with the method pez."""
        return 0 if self.method == "pez" else self.swaps

    @property
    def total_steps(self) -> int:
        """Gradient steps and rounds of swaps of a prompt."""
        return self.walk_steps + self.rounds

    @property
    def any_token(self) -> bool:
        """Whether a prompt may hold tokens that do not survive decoding and re-encoding."""
        return self.method == "pez"


def _set(settings: PezSettings, name: str, value: Any) -> None:
    object.__setattr__(settings, name, value)  # frozen for everybody else


def _whole(name: str, value: Any, least: int | None) -> int:
    """An integer of any kind (NumPy's too), and nothing that is only nearly one."""
    try:
        found = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = None
    if found is None:
        raise UserError(f"{name} is {value!r}; expected a whole number")
    if least is not None and found < least:
        raise UserError(f"{name} is {value}; expected {least} or more")
    return found


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise UserError(f"{name} is {value!r}; expected a finite number")
    return float(value)


def _words(name: str, value: Any) -> tuple[str, ...]:
    """Words as they come; one word alone is a list of one, not of its letters."""
    words = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else None
    if words is None or not all(isinstance(word, str) and word.strip() for word in words):
        raise UserError(f"{name} is {value!r}; expected words, like ('red', 'blue*')")
    if joined := next(
        (word for word in words if "," in word.strip(" ,")), None
    ):  # read as a phrase, it would block one of them
        raise UserError(f"{name} has {joined!r}; expected one word or phrase each, without commas between them")
    return words
