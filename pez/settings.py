"""User settings, importable without torch."""

import dataclasses
import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any, Literal, Self, get_args

from pez.errors import UserError
from pez.methods.names import TRAITS, Method
from pez.phrases import read_phrases

ALGORITHM = 2
"""incremented whenever the same settings produce different prompts, so that no output mixes versions"""

Precision = Literal["fp32", "bf16", "fp64"]
GeneratorPrecision = Literal["fp32", "fp16", "bf16"]
Scheduler = Literal["dpm++", "euler", "ddim", "model"]
Vocabularies = Literal["model", "words", "full"]


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """A CLIP model and its precision."""

    model: str = "ViT-H-14"
    """demo, demo-judge, an open_clip name, hf-hub:ORG/REPO or local-dir:FOLDER"""
    pretrained: str = "laion2b_s32b_b79k"
    """pretrained tag or checkpoint file for an open_clip name; none = random weights"""
    precision: Precision | None = None
    """precision of the optimization; default = bf16 on a GPU, fp32 on a CPU. Similarities are always measured in fp32"""
    compiled: bool = False
    """compile the text tower; worthwhile for long runs on a GPU"""

    def on(self, device: str) -> Self:
        """These settings with defaults filled in for a device such as cpu or cuda:0."""
        return self if self.precision is not None else dataclasses.replace(self, precision=precision_for(device))


def precision_for(device: str) -> Precision:
    """The default precision on a device such as cpu or cuda:0."""
    return "fp32" if device.partition(":")[0] == "cpu" else "bf16"


def lanes_for(device: str) -> int:
    """The default number of lanes on a device such as cpu or cuda:0."""
    return 64 if device.partition(":")[0] == "cpu" else 1024


@dataclasses.dataclass(frozen=True)
class PezSettings:
    """Settings of PEZ. Together with the image and the model they determine the prompt.

    Source: arXiv:2302.03668, section 4, for the learning rate and the weight decay.
    """

    tokens: int = 8
    """tokens per prompt; 8 to 16 work best for image generation"""
    steps: int = 500
    """gradient steps per restart"""
    swaps: int = 24
    """rounds of token swaps after the gradient steps; each candidate is scored exactly"""
    candidates: int = 32
    """candidate tokens scored per round of swaps"""
    token_weight: float = 0.0
    """in rounds of swaps, the weight of each token's own similarity to the image. With 0, only the prompt's similarity
    counts: it ends higher under this model, and lower under other models"""
    method: Method = "default"
    """default = PEZ followed by rounds of token swaps; pez = the paper's algorithm alone: no swaps, weight decay as
    published, and tokens need not survive decoding and re-encoding; bank = phrases of --bank, chained. The others are there to
    compare with: autoprompt, fluentprompt, gcg, gaslite, random, and soft (a soft prompt, projected at the end)"""
    restarts: int = 1
    """independent random starts; the best prompt is kept"""
    seed: int = 0
    learning_rate: float | None = None
    """default = 0.1, as published; 300 for autoprompt and 1 for fluentprompt, which take plain gradient steps"""
    weight_decay: float | None = None
    """default = 0.5, which finds better words than the published 0.1; 0.1 for the methods pez and soft"""
    vocabulary: Vocabularies = "model"
    """tokens a prompt may use: model = the model's recommendation (the demo: its caption words; others: words),
    words = whole words only, full = every token that survives decoding and re-encoding, except brackets, bars and
    other characters that image generators treat as syntax (with the method pez: all except special tokens)"""
    blocklist: tuple[str, ...] = ()
    """words, phrases or emoji that no prompt may contain, regardless of case and accents; * matches any characters and
    ? matches one"""
    allowlist: tuple[str, ...] = ()
    """the only words a prompt may contain, overriding the vocabulary; each must be one token of the model"""
    bank: tuple[str, ...] = ()
    """phrases, or @FILE with one phrase per line. With the method bank, prompts are chains of these phrases; with another
    method, they are made of the words of these phrases only"""
    exact: dataclasses.InitVar[bool | None] = None
    """True = the method pez"""

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
        if self.restarts > 1 and "restarts" not in TRAITS[self.method].uses:
            raise UserError(f"restarts is {self.restarts}; expected 1, since the method {self.method} has one start")
        if self.learning_rate is not None:
            _set(self, "learning_rate", _number("learning_rate", self.learning_rate))
        if not self.rate > 0:
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
        _set(self, "bank", read_phrases(self.bank))
        if self.method == "bank" and not self.bank:
            raise UserError("method is bank, but bank has no phrases; expected phrases, or @FILE with one per line")
        if self.bank and self.allowlist:
            raise UserError("bank and allowlist are both given; expected one of them")

    @property
    def rate(self) -> float:
        """The effective learning rate."""
        return TRAITS[self.method].rate if self.learning_rate is None else self.learning_rate

    @property
    def decay(self) -> float:
        """The effective weight decay."""
        return TRAITS[self.method].decay if self.weight_decay is None else self.weight_decay

    @property
    def walk_steps(self) -> int:
        """Gradient steps per prompt, over all restarts."""
        return self.steps * self.restarts

    @property
    def rounds(self) -> int:
        """Rounds of swaps per prompt after the gradient steps; 0 with the other methods."""
        return self.swaps if self.method == "default" else 0

    @property
    def total_steps(self) -> int:
        """Gradient steps and rounds of swaps per prompt."""
        return 1 if self.method == "bank" else self.walk_steps + self.rounds

    @property
    def any_token(self) -> bool:
        """Whether prompts may contain tokens that do not survive decoding and re-encoding."""
        return self.method == "pez"


def _set(settings: PezSettings, name: str, value: Any) -> None:
    object.__setattr__(settings, name, value)  # the dataclass is frozen


def _whole(name: str, value: Any, least: int | None) -> int:
    """Accept any integer type (NumPy's too), but no float."""
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
    """Words as a tuple; a plain string is one word, not a sequence of letters."""
    words = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else None
    if words is None or not all(isinstance(word, str) and word.strip() for word in words):
        raise UserError(f"{name} is {value!r}; expected words, like ('red', 'blue*')")
    # "red, blue" would be read as one phrase, and only one of its words would be blocked.
    if joined := next((word for word in words if "," in word.strip(" ,")), None):
        raise UserError(f"{name} contains {joined!r}; expected one word or phrase each, without commas")
    return words
