"""User settings, importable without torch."""

import dataclasses
import math
from typing import Any, Literal, Self, TypeAlias, get_args

from pez.checks import expect_template, number, whole, words
from pez.errors import UserError
from pez.fluency import read_texts
from pez.methods.names import TRAITS, Method
from pez.phrases import read_phrases

ALGORITHM = 8
"""incremented whenever the same settings produce different prompts, so that no output mixes versions"""

Names: TypeAlias = str | tuple[str, ...]
Precision = Literal["fp32", "bf16", "fp64"]
GeneratorPrecision = Literal["fp32", "fp16", "bf16"]
Scheduler = Literal["dpm++", "euler", "ddim", "model"]
Vocabularies = Literal["model", "words", "full"]
SwapAmong = Literal["visited", "all"]


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """A CLIP model and its precision."""

    model: Names = "ViT-H-14"
    """demo, demo-judge, an open_clip name, hf-hub:ORG/REPO or local-dir:FOLDER; several models with one vocabulary learn one
    prompt together, as for SDXL: ViT-L-14 ViT-bigG-14"""
    pretrained: Names = "laion2b_s32b_b79k"
    """pretrained tag or checkpoint file for an open_clip name, one per such name; none = random weights"""
    model_weights: tuple[float, ...] = ()
    """with several models: the weight of each; default = equal"""
    precision: Precision | None = None
    """precision of the optimization; default = bf16 on a GPU, fp32 on a CPU. Similarities are always measured in fp32"""
    compiled: bool = False
    """compile the text tower; worthwhile for long runs on a GPU"""

    def __post_init__(self) -> None:
        for name in ("model", "pretrained"):
            value = getattr(self, name)
            if not isinstance(value, str):  # a list of JSON, or of one word
                object.__setattr__(self, name, value[0] if len(value) == 1 else tuple(value))
        object.__setattr__(self, "model_weights", tuple(self.model_weights))
        if self.model_weights and len(self.model_weights) != len(self.models):
            found = f"{len(self.model_weights)} for {len(self.models)} models"
            raise UserError(f"model_weights are {found}; expected one each")
        if not all(math.isfinite(weight) and weight > 0 for weight in self.model_weights):
            raise UserError(f"model_weights are {list(self.model_weights)}; expected numbers above 0")

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models."""
        return (self.model,) if isinstance(self.model, str) else self.model

    @property
    def name(self) -> str:
        """`ViT-L-14 + ViT-bigG-14`."""
        return " + ".join(self.models)

    def on(self, device: str) -> Self:
        """These settings with defaults filled in for a device such as cpu or cuda:0."""
        return self if self.precision is not None else dataclasses.replace(self, precision=precision_for(device))


def precision_for(device: str) -> Precision:
    """The default precision on a device such as cpu or cuda:0."""
    return "fp32" if device.partition(":")[0] == "cpu" else "bf16"


def lanes_for(device: str) -> int:
    """The default number of lanes on a device such as cpu or cuda:0."""
    return 64 if device.partition(":")[0] == "cpu" else 1024


_OF_ONE = {"swaps": 16, "candidates": 16}
"""defaults with one model"""
_OF_SEVERAL = {"swaps": 32, "candidates": 32, "token_weight": 0.0, "restarts": 1}
"""defaults with several models"""
_TOKEN_WEIGHT = 0.4
_STEPS, _STEPS_ALONE = 96, 350
"""gradient steps of one of several searches, and of a single one"""
_SEARCHES, _SEARCHES_FULL, _SEARCHES_LARGE = 2, 6, 12
"""searches with a small vocabulary, with one that is small though it is full, and with a large one"""
LARGE_VOCABULARY = 256
"""tokens of a large one, or more"""


@dataclasses.dataclass(frozen=True)
class PezSettings:
    """Settings of PEZ. Together with the image and the model they determine the prompt.

    Source: arXiv:2302.03668, section 4, for the learning rate and the weight decay.
    """

    tokens: int = 8
    """tokens per prompt; 8 to 16 work best for image generation"""
    steps: int | None = None
    """gradient steps of a search; default = 96, or 350 where there is one search: with several models, another method or
    --restarts 1"""
    project_every: int = 10
    """with a large vocabulary, gradient steps from one search of all tokens to the next; in between, the nearest of the 64 that
    were nearest then is taken. 1 = every step searches all"""
    swaps: int | None = None
    """rounds of token swaps after the gradient steps, each candidate scored exactly; default = 16, or 32 with several models"""
    candidates: int | None = None
    """candidate tokens scored per round of swaps; default = 16, or 32 with several models"""
    swap_among: SwapAmong = "visited"
    """tokens that swaps may take: visited = those that the gradient steps tried, which suit the image under other models
    too; all = the whole vocabulary"""
    token_weight: float | None = None
    """weight of the tokens' own similarity to the image, in the choice of the searches that get swaps and in the swaps. With 0,
    only the prompt's similarity counts: it ends higher under this model and, with many tokens, lower under other models.
    Default = 0.4, or 0 with several models or fewer than 256 tokens"""
    fluency: float = 0.0
    """in rounds of swaps, what a candidate pays for each nat of its mean surprise under a bigram model of --fluency-text, in
    units of similarity; values from 0.003 to 0.03 are useful"""
    fluency_text: tuple[str, ...] = ()
    """file with texts such as captions, one per line, for the bigram model; adds the perplexity of each prompt to the output.
    Needed with --fluency, except with a demo model"""
    method: Method = "default"
    """default = PEZ followed by rounds of token swaps; pez = the paper's algorithm alone: no swaps, weight decay as
    published, and tokens need not survive decoding and re-encoding; bank = phrases of --bank, chained. The others are there to
    compare with: autoprompt, fluentprompt, gcg, gaslite, random, and soft (a soft prompt, projected at the end)"""
    restarts: int | None = None
    """independent searches for each image, from different random starts, of which --finalists get swaps; the best prompt is
    kept. Default = 12 with at least 256 tokens, otherwise 2, or 6 with --vocabulary full; 1 with --steps, several models or
    another method"""
    finalists: int | None = None
    """how many of an image's searches get rounds of swaps: after the gradient steps, those with the highest similarity plus
    --token-weight times the mean of their tokens' own. Default = 1 with at least 256 tokens, otherwise all"""
    candidates_kept: int = 1
    """how many of the best distinct prompts to keep for each image, up to 64"""
    seed: int = 0
    learning_rate: float | None = None
    """default = 0.1, as published; 300 for autoprompt and 1 for fluentprompt, which take plain gradient steps"""
    weight_decay: float | None = None
    """default = 0.5, which finds better words than the published 0.1; 0.1 for the methods pez and soft"""
    vocabulary: Vocabularies = "model"
    """tokens a prompt may use: model = the model's recommendation (the demo: its caption words; others: words),
    words = whole words only, full = every token that survives decoding and re-encoding (with the method pez: all except
    special tokens). Tokens that the model was never trained on are left out"""
    untrained_tokens: bool | None = None
    """with the vocabularies words and full: also take tokens that the model was never trained on, which raise the similarity
    under this model and lower it under others; default = only with the method pez"""
    blocklist: tuple[str, ...] = ()
    """words, phrases or emoji that no prompt may contain, regardless of case and accents; * matches any characters and
    ? matches one; @FILE lists one per line; @offensive is a list of offensive English words (pip install better-profanity)"""
    allowlist: tuple[str, ...] = ()
    """the only words a prompt may contain, overriding the vocabulary; each must be one token of the model"""
    plain_text: bool | None = None
    """no brackets, bars, double dashes and other signs and words that prompt boxes read as commands; default = yes for the full
    vocabulary, except with the method pez"""
    template: str | None = None
    """fixed words around the prompt, which stands at {}: 'a tiger in the style of {}'. The tokens are learned for the whole
    text, and `prompt` is the whole text"""
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
        least = {
            "tokens": 1,
            "steps": 1,
            "restarts": 1,
            "finalists": 1,
            "swaps": 0,
            "candidates": 1,
            "candidates_kept": 1,
            "project_every": 1,
            "seed": None,
        }
        for name, bound in least.items():
            if (value := getattr(self, name)) is not None or name not in (*_OF_ONE, "steps", "restarts", "finalists"):
                _set(self, name, whole(name, value, bound))
        if self.searches > 1 and "restarts" not in TRAITS[self.method].uses:
            raise UserError(f"restarts is {self.restarts}; expected 1, since the method {self.method} has one start")
        if self.candidates_kept > 64:
            raise UserError(f"candidates_kept is {self.candidates_kept}; expected 64 or less")
        if self.candidates_kept > 1 and "candidates_kept" not in TRAITS[self.method].uses:
            raise UserError(
                f"candidates_kept is {self.candidates_kept}; expected 1, since the method {self.method} keeps one prompt"
            )
        if self.learning_rate is not None:
            _set(self, "learning_rate", number("learning_rate", self.learning_rate))
        if not self.rate > 0:
            raise UserError(f"learning_rate is {self.learning_rate}; expected more than 0")
        if self.token_weight is not None:
            _set(self, "token_weight", number("token_weight", self.token_weight))
        if self.weight_of_tokens < 0:
            raise UserError(f"token_weight is {self.token_weight}; expected 0 or more")
        _set(self, "fluency", number("fluency", self.fluency))
        if self.fluency < 0:
            raise UserError(f"fluency is {self.fluency}; expected 0 or more")
        if self.fluency and "fluency" not in TRAITS[self.method].uses:
            raise UserError(
                f"fluency is {self.fluency}; expected 0, since the method {self.method} does no rounds of swaps"
            )
        _set(self, "fluency_text", read_texts(self.fluency_text))
        if self.weight_decay is not None:
            _set(self, "weight_decay", number("weight_decay", self.weight_decay))
        if self.decay < 0:
            raise UserError(f"weight_decay is {self.decay}; expected 0 or more")
        if self.swap_among not in get_args(SwapAmong):
            raise UserError(f"swap_among is {self.swap_among!r}; expected one of {', '.join(get_args(SwapAmong))}")
        if self.vocabulary not in get_args(Vocabularies):
            raise UserError(f"vocabulary is {self.vocabulary!r}; expected one of {', '.join(get_args(Vocabularies))}")
        for name in ("blocklist", "allowlist"):
            _set(self, name, words(name, getattr(self, name)))
        if self.plain_text not in (None, True, False):
            raise UserError(f"plain_text is {self.plain_text!r}; expected True, False or None")
        if self.untrained_tokens not in (None, True, False):
            raise UserError(f"untrained_tokens is {self.untrained_tokens!r}; expected True, False or None")
        if self.template is not None:
            expect_template(self.template)
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
    def searches(self) -> int:
        """The effective `restarts`, after `for_vocabulary` if the vocabulary decides it."""
        if self.restarts is not None:
            return self.restarts
        if self.method != "default" or self.steps is not None:
            return 1
        return _SEARCHES_FULL if self.vocabulary == "full" and not self.allowlist and not self.bank else _SEARCHES

    @property
    def improved(self) -> int:
        """The effective `finalists`, after `for_vocabulary` if the vocabulary decides it."""
        return self.searches if self.finalists is None or not self.rounds else min(self.finalists, self.searches)

    @property
    def gradient_steps(self) -> int:
        """The effective `steps`."""
        if self.steps is not None:
            return self.steps
        return _STEPS_ALONE if self.searches == 1 else _STEPS

    @property
    def rounds(self) -> int:
        """Rounds of swaps per prompt after the gradient steps; 0 with the other methods."""
        swaps = _OF_ONE["swaps"] if self.swaps is None else self.swaps
        return swaps if self.method == "default" else 0

    @property
    def tried(self) -> int:
        """Candidates per round of swaps."""
        return _OF_ONE["candidates"] if self.candidates is None else self.candidates

    @property
    def weight_of_tokens(self) -> float:
        """The effective `token_weight`, after `for_vocabulary` if the vocabulary decides it."""
        return _TOKEN_WEIGHT if self.token_weight is None else self.token_weight

    def for_models(self, count: int) -> Self:
        """These settings for so many models that guide together: several check each other, so they need other defaults.

        What one model needs remains None, so that it is not a choice.
        """
        if count == 1 or self.method != "default":
            return self
        missing: dict[str, Any] = {name: value for name, value in _OF_SEVERAL.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)

    def for_vocabulary(self, count: int) -> Self:
        """These settings for a vocabulary of so many tokens, which decides `restarts`, `finalists` and `token_weight`."""
        if self.method != "default":
            return self
        large = count >= LARGE_VOCABULARY
        searches = self.searches if self.searches == 1 or self.restarts is not None or not large else _SEARCHES_LARGE
        finalists = 1 if self.finalists is None and large else self.finalists
        weight = 0.0 if self.token_weight is None and not large else self.token_weight
        return dataclasses.replace(self, restarts=searches, finalists=finalists, token_weight=weight)

    def with_defaults(self) -> Self:
        """These settings with their defaults in place of None, except for those that the vocabulary decides."""
        filled: dict[str, Any] = {name: one for name, one in _OF_ONE.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **filled)

    def without_defaults(self) -> Self:
        """These settings with None for what is the default of one model anyway."""
        same: dict[str, Any] = {name: None for name, one in _OF_ONE.items() if getattr(self, name) == one}
        rate = None if self.learning_rate == TRAITS[self.method].rate else self.learning_rate
        return dataclasses.replace(self, learning_rate=rate, **same)

    @property
    def total_steps(self) -> int:
        """Gradient steps and rounds of swaps per prompt, over all restarts."""
        return self.steps_for(1, 1)

    def steps_for(self, prompts: int, lanes: int) -> int:
        """Gradient steps and rounds of swaps of all lanes together, until so many prompts are learned."""
        if self.method == "bank":
            return -(-prompts // lanes)
        walks, swapped = -(-prompts * self.searches // lanes), -(-prompts * self.improved // self.swap_lanes(lanes))
        return walks * self.gradient_steps + swapped * self.rounds

    def swap_lanes(self, lanes: int) -> int:
        """Lanes of the rounds of swaps: the share of the searches that get there, rounded up to a multiple of 16."""
        return min(lanes, -(-lanes * self.improved // (16 * self.searches)) * 16)

    @property
    def plain(self) -> bool:
        """The effective `plain_text`."""
        by_default = self.vocabulary == "full" and not self.any_token and not self.allowlist
        return by_default if self.plain_text is None else self.plain_text

    @property
    def takes_untrained(self) -> bool:
        """The effective `untrained_tokens`."""
        return self.any_token if self.untrained_tokens is None else self.untrained_tokens

    @property
    def any_token(self) -> bool:
        """Whether prompts may contain tokens that do not survive decoding and re-encoding."""
        return self.method == "pez"


def _set(settings: PezSettings, name: str, value: Any) -> None:
    object.__setattr__(settings, name, value)  # the dataclass is frozen
