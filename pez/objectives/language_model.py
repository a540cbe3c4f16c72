"""Text classification under a causal language model, as a loss of prompts.

The loss of a prompt is the mean over examples of the cross-entropy over the label words, at the last position of
`[prompt] [text] [template]`. With a fluency weight w it is w x fluency + (1 - w) x cross-entropy, where the fluency is the mean
cross-entropy of the prompt's own tokens 2 to n.

A batch is rows of examples, drawn by seed and step, the same for all lanes. Lanes x examples are computed in pieces that fit in
memory: out of memory, the piece is halved, and the smaller size is remembered.

Source: Wen et al. 2023, arXiv:2302.03668, section 5.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pez.classification import Examples, Template
from pez.errors import UserError
from pez.models.language_model import LanguageModel
from pez.seeds import generator_for

_ROWS = {"cpu": 32, "cuda": 256}
"""lanes x examples in memory at a time; on a CPU, where padding costs more than it saves, fewer"""
_ANCHOR = "the"  # a word in place of the prompt, after which texts are encoded

Found = TypeVar("Found")


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Examples as the model reads them after a prompt."""

    endings: list[list[int]]
    """token ids of text and template"""
    labels: Tensor
    """(examples,) int64"""
    alone: list[list[int]]
    """the same at the start of a text, for the empty prompt"""

    def __len__(self) -> int:
        return len(self.endings)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a prompt achieves on examples."""

    accuracy: float
    loss: float


class Classification:
    """The loss and the accuracy of prompts.

    Args:
        model: the language model.
        template: the words around a text.
        verbalizer: words by label.
        tokens: of prompts, for the room that texts have in the model's context.
        text_tokens: the longest text; what is longer loses its end.
        fluency: the weight of the fluency.
        engine: the same model in the precision of searches; default = the model. Accuracies are those of the model.

    Raises:
        UserError: a word is not one token, two labels share a token, or a prompt leaves no room for a text.
    """

    def __init__(
        self,
        model: LanguageModel,
        template: Template,
        verbalizer: Mapping[str, str],
        tokens: int = 10,
        text_tokens: int = 128,
        fluency: float = 0.0,
        engine: LanguageModel | None = None,
    ) -> None:
        self.model, self.template, self.fluency = model, template, fluency
        self.engine = engine or model
        self.words = list(verbalizer.values())
        self.answers = self._answers(verbalizer)  # (labels,)
        self.rows = _ROWS.get(model.device.type, 256)
        self.passes = 0
        """tokens that went through the model so far; a gradient counts as three passes"""
        fixed = len(model.start) + tokens + len(model.encode([f" {template.before}", f" {template.after}"])[1]) + 8
        self.text_tokens = min(text_tokens, model.context - fixed)
        if self.text_tokens < 1:
            raise UserError(
                f"tokens is {tokens}, and the context of {model.name} is {model.context} tokens; expected fewer tokens"
            )

    def encode(self, examples: Examples) -> Encoded:
        """Encode examples: after a prompt, since leading spaces change tokens, and at the start of a text."""
        texts = [self._cut(text) for text in examples.texts]
        read = [f"{self.template.before}{text}{self.template.after}" for text in texts]
        anchor = self.model.encode([_ANCHOR])[0]
        together = self.model.encode([f"{_ANCHOR} {text}" for text in read])
        if any(ids[: len(anchor)] != anchor for ids in together):
            raise UserError(f"{self.model.name} merges words across spaces; expected another model")
        return Encoded(
            [ids[len(anchor) :] for ids in together],
            torch.tensor(examples.labels, device=self.model.device),
            [[*self.model.start, *ids] for ids in self.model.encode(read)],
        )

    def draw(self, examples: Encoded, count: int, seed: int, step: int, name: str = "batch") -> list[int]:
        """Indices of so many examples, as evenly over the labels as possible, drawn by seed and step."""
        generator = generator_for(seed, name, step)
        order = torch.randperm(len(examples), generator=generator).tolist()
        return self.balanced(order, examples)[:count]

    def balanced(self, rows: Sequence[int], examples: Encoded) -> list[int]:
        """The rows in such an order that the labels take turns."""
        labels = examples.labels.tolist()
        groups = [[i for i in rows if labels[i] == label] for label in range(len(self.words))]
        return [i for turn in range(len(rows)) for group in groups for i in group[turn : turn + 1]]

    def losses(self, ids: Tensor, examples: Encoded, rows: Sequence[int]) -> Tensor:
        """The loss of each prompt on the same examples.

        Args:
            ids: (lanes, n) int64.
            rows: indices of examples.

        Returns:
            (lanes,) float.
        """
        self._count(ids, examples, rows, 1)
        with torch.no_grad():
            logits = self._logits(self.engine, self.engine.embed(ids), [examples.endings[i] for i in rows])
            flat = examples.labels[list(rows)].repeat(len(ids))
            losses = F.cross_entropy(logits.flatten(0, 1), flat, reduction="none").view(len(ids), -1).mean(-1)
            if self.fluency:
                losses = self.fluency * self.surprise(self.engine, ids) + (1 - self.fluency) * losses
            return losses

    def loss_and_gradient(
        self, soft: Tensor, ids: Tensor, examples: Encoded, rows: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """The loss of each soft prompt, and its gradient.

        Args:
            soft: (lanes, n, width) float.
            ids: (lanes, n) int64, its tokens, for the fluency.
            rows: indices of examples.

        Returns:
            (lanes,) float and (lanes, n, width) float; those of a lane do not depend on the others.
        """
        self._count(ids, examples, rows, 3)
        rows = sorted(rows, key=lambda i: len(examples.endings[i]))  # less padding

        def compute() -> tuple[Tensor, Tensor]:
            losses, gradient = torch.zeros(len(soft), device=soft.device), torch.zeros_like(soft)
            for lanes, part in self._pieces(len(soft), len(rows)):
                chosen = list(rows[part])
                leaf = soft[lanes].detach().requires_grad_()
                prefix = self.engine.with_start(leaf.to(self.engine.embedding.dtype))
                states = self.engine.last_states(prefix, [examples.endings[i] for i in chosen])
                logits = self._answer_logits(self.engine, states).transpose(1, 2)  # (lanes, labels, examples)
                labels = examples.labels[chosen].expand(len(leaf), -1)
                loss = F.cross_entropy(logits, labels, reduction="none").sum(-1) / len(rows)
                if self.fluency:
                    share = len(chosen) / len(rows)
                    surprise = self.engine.surprise(prefix, ids[lanes])
                    loss = (1 - self.fluency) * loss + self.fluency * share * surprise
                (found,) = torch.autograd.grad(loss.sum(), leaf)
                losses[lanes] += loss.detach()
                gradient[lanes] += found
            return losses, gradient

        return self._with_less_memory(compute)

    def measure(self, prompt: str, examples: Encoded) -> Measured:
        """Accuracy and loss of a text, encoded in its place; "" is the empty prompt."""
        ids = torch.tensor([self.model.encode([prompt.strip()])[0]], dtype=torch.long, device=self.model.device)
        with torch.no_grad():
            if ids.numel():
                logits = self._logits(self.model, self.model.embed(ids), examples.endings)[0]
            else:
                logits = self._logits(self.model, self.model.embedding[ids], examples.alone)[0]
        accuracy = (logits.argmax(-1) == examples.labels).double().mean()
        return Measured(float(accuracy), float(F.cross_entropy(logits, examples.labels)))

    def surprise(self, model: LanguageModel, ids: Tensor) -> Tensor:
        """(lanes, n) int64 prompts to the (lanes,) mean cross-entropy of their tokens 2 to n under a model, in nats."""

        def compute() -> Tensor:
            parts = ids.split(max(1, self.rows))
            return torch.cat([model.surprise(model.embed(part), part) for part in parts])

        with torch.no_grad():
            return self._with_less_memory(compute)

    def perplexity(self, prompt: str) -> float | None:
        """The perplexity of a text's tokens after the first; None if there are fewer than two."""
        ids = torch.tensor(self.model.encode([prompt.strip()]), device=self.model.device)
        return float(self.surprise(self.model, ids).exp()) if ids.shape[1] > 1 else None

    def _logits(self, model: LanguageModel, prefix: Tensor, endings: Sequence[Sequence[int]]) -> Tensor:
        """(lanes, endings, labels) float: logits of the label words. Endings of similar length are computed together."""
        order = sorted(range(len(endings)), key=lambda i: len(endings[i]))

        def compute() -> Tensor:
            found = torch.empty(len(prefix), len(endings), len(self.answers), device=prefix.device)
            for lanes, part in self._pieces(len(prefix), len(endings)):
                states = model.last_states(prefix[lanes], [endings[i] for i in order[part]])
                rows = torch.arange(len(prefix), device=prefix.device)[lanes]
                found[rows[:, None], torch.tensor(order[part], device=prefix.device)] = self._answer_logits(
                    model, states
                )
            return found

        return self._with_less_memory(compute)

    def _answer_logits(self, model: LanguageModel, states: Tensor) -> Tensor:
        """(..., width) states to (..., labels) logits of the label words."""
        weight, bias = model.head.weight, model.head.bias
        logits: Tensor = F.linear(states, weight[self.answers], None if bias is None else bias[self.answers])
        return logits.float()

    def _pieces(self, lanes: int, examples: int) -> Iterator[tuple[slice, slice]]:
        """Slices of lanes and of examples that fit in memory together."""
        at_once = max(1, self.rows // examples)
        for lane in range(0, lanes, at_once):
            for first in range(0, examples, self.rows):
                yield slice(lane, lane + at_once), slice(first, first + self.rows)

    def _with_less_memory(self, compute: Callable[[], Found]) -> Found:
        """Compute; out of memory, with smaller pieces."""
        while True:
            try:
                return compute()
            except torch.OutOfMemoryError:
                if self.rows == 1:
                    raise
            # Outside the except block, because the error keeps the failed step's tensors alive.
            self.rows //= 2
            warnings.warn(f"out of memory; continuing with {self.rows} texts at a time", stacklevel=3)

    def _count(self, ids: Tensor, examples: Encoded, rows: Sequence[int], times: int) -> None:
        self.passes += times * (ids.numel() + len(ids) * sum(len(examples.endings[i]) for i in rows))

    def _cut(self, text: str) -> str:
        """A text that fits: what is too long loses its end."""
        ids = self.model.encode([text])[0]
        return text if len(ids) <= self.text_tokens else self.model.text_of(ids[: self.text_tokens])

    def _answers(self, verbalizer: Mapping[str, str]) -> Tensor:
        before = f"{_ANCHOR} {self.template.after.split()[-1] if self.template.after.split() else _ANCHOR}"
        start = self.model.encode([before])[0]
        found: dict[int, str] = {}
        for label, word in verbalizer.items():
            ids = self.model.encode([f"{before} {word}"])[0][len(start) :]
            if len(ids) != 1:
                raise UserError(
                    f"the word {word!r} of the label {label!r} is {len(ids)} tokens of {self.model.name}; "
                    "expected words of one token: choose a shorter or more common one"
                )
            if ids[0] in found:
                raise UserError(f"the words {found[ids[0]]!r} and {word!r} are one token; expected different words")
            found[ids[0]] = word
        return torch.tensor(list(found), device=self.model.device)
