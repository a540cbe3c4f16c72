"""Text classification by a language model: what is read, what is asked, and the settings of a search; importable without torch.

    [prompt] [text] [words of the template] [word of a label]

The label whose word is the most likely one at the end is the model's answer.
"""

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, Self, get_args

from pez.errors import UserError

SEARCH = 4
"""the version of the searches; whoever changes the prompts that a seed gives must increment it"""

SearchMethod = Literal["default", "pez", "autoprompt", "fluentprompt", "gcg", "random"]
Optimizer = Literal["adafactor", "adamw"]
Precision = Literal["fp32", "bf16"]
Start = Literal["words", "random"]

LABELS: dict[SearchMethod, str] = {
    "default": "scored starts, then swaps",
    "pez": "PEZ, Algorithm 1",
    "autoprompt": "AutoPrompt-SGD",
    "fluentprompt": "FluentPrompt",
    "gcg": "GCG",
    "random": "random search",
}
STEPS: dict[SearchMethod, int] = {
    "default": 60, "pez": 500, "autoprompt": 500, "fluentprompt": 500, "gcg": 100, "random": 500,
}  # fmt: skip
"""by default; of random search: prompts drawn"""


@dataclasses.dataclass(frozen=True)
class Template:
    """The words around a text.

    Args:
        text: begins with {prompt}, has {text}, and ends with {label}, each once.

    Raises:
        UserError: it has another form.
    """

    text: str = "{prompt} {text} It was {label}"

    def __post_init__(self) -> None:
        found = " ".join(self.text.split())
        fields = ("{prompt}", "{text}", "{label}")
        once = all(found.count(field) == 1 for field in fields)
        if not (once and found.startswith("{prompt} ") and found.endswith(" {label}")):
            raise UserError(f"template is {self.text!r}; expected one like '{{prompt}} {{text}} It was {{label}}'")
        object.__setattr__(self, "text", found)

    @property
    def before(self) -> str:
        """The words between the prompt and the text."""
        return self.text.removeprefix("{prompt} ").partition("{text}")[0]

    @property
    def after(self) -> str:
        """The words between the text and the label."""
        return self.text.partition("{text}")[2].removesuffix("{label}").rstrip()


@dataclasses.dataclass(frozen=True)
class TaskPreset:
    """A task of the paper, as the authors pose it: its data set on the hub, template and words."""

    data: str
    text_field: str
    label_field: str
    template: str
    verbalizer: str


PRESETS: dict[str, TaskPreset] = {
    "sst2": TaskPreset(
        "stanfordnlp/sst2", "sentence", "label", "{prompt} {text} . It was {label}", "0=negative,1=positive"
    ),
    "agnews": TaskPreset(
        "fancyzhx/ag_news",
        "text",
        "label",
        "{prompt} {text} It was about {label}",
        "0=politics,1=sports,2=business,3=technology",
    ),
    "amazon": TaskPreset(
        "fancyzhx/amazon_polarity", "content", "label", "{prompt} {text} It was {label}", "0=negative,1=positive"
    ),
}
"""Source: Wen et al. 2023, arXiv:2302.03668, section 5, and the authors' code."""


def read_verbalizer(text: str) -> dict[str, str]:
    """`negative=terrible,positive=great` as words by label.

    Raises:
        UserError: it has another form, fewer than two labels, or one label or word twice.
    """
    pairs = [part.split("=") for part in text.split(",")]
    if any(len(pair) != 2 or not pair[0].strip() or not pair[1].strip() for pair in pairs):
        raise UserError(f"verbalizer is {text!r}; expected label=word pairs like negative=terrible,positive=great")
    words = [(label.strip(), word.strip()) for label, word in pairs]
    for what, values in (("label", [label for label, _ in words]), ("word", [word for _, word in words])):
        twice = [value for value, number in Counter(values).items() if number > 1]
        if twice:
            raise UserError(f"verbalizer has the {what} {twice[0]!r} twice; expected a different one for each")
    if len(words) < 2:
        raise UserError(f"verbalizer is {text!r}, one label; expected two or more")
    return dict(words)


@dataclasses.dataclass(frozen=True)
class Examples:
    """Texts and their labels, as indices of the verbalizer."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def of(cls, rows: Sequence[tuple[object, object]], verbalizer: Mapping[str, str], where: str) -> Self:
        """Examples from pairs of text and label.

        Args:
            where: the origin of the rows, for messages.

        Raises:
            UserError: a text is empty, a label has no word, or all rows have one label.
        """
        names = list(verbalizer)
        texts, labels = [], []
        for number, (text, label) in enumerate(rows):
            if not isinstance(text, str) or not text.strip():
                found = "empty" if text in (None, "") or isinstance(text, str) else type(text).__name__
                raise UserError(f"the text of row {number} of {where} is {found}; expected a text: remove the row")
            name = str(label)
            if name not in verbalizer:
                raise UserError(
                    f"row {number} of {where} has the label {name!r}, and the verbalizer has {', '.join(names)}; "
                    "expected a word for every label"
                )
            texts.append(" ".join(text.split()))
            labels.append(names.index(name))
        if not rows:
            raise UserError(f"{where} has no rows; expected texts with labels")
        if len(set(labels)) == 1:
            raise UserError(f"every row of {where} has the label {names[labels[0]]!r}; expected two labels or more")
        return cls(tuple(texts), tuple(labels))

    def some(self, most: int, seed: str) -> Self:
        """At most so many examples, chosen by a hash of text and seed."""
        return self._at(_order(self.texts, seed)[:most])

    def _at(self, indices: Sequence[int]) -> Self:
        return dataclasses.replace(
            self, texts=tuple(self.texts[i] for i in indices), labels=tuple(self.labels[i] for i in indices)
        )

    def split(self, heldout: int, test: int) -> tuple[Self, Self, Self]:
        """Divide into (train, held-out, test); a text is in one part only, whatever the order of the rows.

        Args:
            heldout, test: the most examples of a part; neither is more than a fifth of all.
        """
        order = _order(self.texts, "split")
        unique = list({self.texts[i]: i for i in reversed(order)}.values())[::-1]
        fifth = len(unique) // 5
        heldout, test = min(heldout, fifth), min(test, fifth)
        parts = unique[test + heldout :], unique[test : test + heldout], unique[:test]
        train, held, tested = (self._at(part) for part in parts)
        return train, held, tested


@dataclasses.dataclass(frozen=True)
class Question:
    """What a model is asked, and with which examples."""

    template: Template
    verbalizer: dict[str, str]
    text_tokens: int
    train: Examples
    heldout: Examples
    test: Examples


def _order(texts: Sequence[str], seed: str) -> list[int]:
    """Indices of texts in a random order that depends on the texts and the seed only."""
    digests = [hashlib.sha256(f"{seed}|{text}".encode("utf-8", "surrogatepass")).digest() for text in texts]
    return sorted(range(len(texts)), key=lambda i: digests[i])


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """Settings of a search for a prompt. With the data, the model and the seed they determine the prompts."""

    tokens: int = 48
    """tokens per prompt; 10 in the paper. 48 have room for some short examples of each of two labels"""
    steps: int | None = None
    """gradient steps or rounds per restart; default = 500, 60 rounds for the default method and 100 for gcg"""
    restarts: int = 8
    """independent starts, learned side by side"""
    budget: float | None = None
    """end a search after so many million passes of one token through the model, for each restart; a gradient counts as three
    passes. For comparisons at equal cost"""
    batch: int = 16
    """examples per gradient step"""
    evaluate_every: int = 10
    """steps between two measurements of held-out accuracy, by which the best prompt is chosen"""
    optimizer: Optimizer = "adafactor"
    """of pez, autoprompt and fluentprompt; adafactor as in the paper"""
    learning_rate: float | None = None
    """default = 0.3 with adafactor, as published; 0.1 with adamw"""
    clip: float = 1.0
    """the norm that a prompt's gradient is cut to"""
    precision: Precision = "fp32"
    """precision of the search; bf16 is faster on a GPU, and on a CPU with instructions for it. Accuracies are measured in
    fp32"""
    fluency: float = 0.0
    """weight of the fluency of the prompt in the loss: its mean cross-entropy under the model; 0.003 in the paper"""
    start: Start = "words"
    """of pez, autoprompt, fluentprompt and gcg: the label words repeated, as the authors do, or random words"""
    candidates: int = 24
    """prompts tried per round of default and gcg"""
    search_examples: int = 128
    """examples, balanced over the labels, on which prompts of the default method race"""

    def __post_init__(self) -> None:
        least = {"tokens": 2, "restarts": 1, "batch": 2, "evaluate_every": 1, "candidates": 1, "search_examples": 4}
        for name, bound in least.items():
            if (value := getattr(self, name)) < bound:
                raise UserError(f"{name} is {value}; expected {bound} or more")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"steps is {self.steps}; expected 1 or more")
        for name in ("learning_rate", "budget"):
            found = getattr(self, name)
            if found is not None and not (math.isfinite(found) and found > 0):
                raise UserError(f"{name} is {found}; expected more than 0")
        if not self.clip > 0:
            raise UserError(f"clip is {self.clip}; expected more than 0")
        if not 0 <= self.fluency < 1:
            raise UserError(f"fluency is {self.fluency}; expected 0 to below 1")
        if self.precision not in get_args(Precision):
            raise UserError(f"precision is {self.precision!r}; expected one of {', '.join(get_args(Precision))}")
        if self.optimizer not in get_args(Optimizer):
            raise UserError(f"optimizer is {self.optimizer!r}; expected one of {', '.join(get_args(Optimizer))}")

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.learning_rate or (0.3 if self.optimizer == "adafactor" else 0.1)

    def steps_of(self, method: SearchMethod) -> int:
        """The steps of a method."""
        return self.steps or STEPS[method]
