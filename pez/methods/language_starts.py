"""Prompts to start from that demonstrate the labels of a classification; see `pez.methods.language_model`.

Sources: Brown et al. 2020, arXiv:2005.14165, for examples as a prompt; Monroe et al. 2008 for typical words.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from pez.objectives.language_model import Classification, Encoded

_SUITED = 16  # words of each kind that suit a label
_DRAWS = 100  # before the search for examples of the right length ends
_TURNS = 4  # examples of each label in a start, at most
_ANCHOR = "the"  # a word before the words of the template


class Starts:
    """Draws prompts from the examples to learn from.

    Args:
        objective: for the model, the template and the label words.
        train: examples to learn from.
        tokens: of a prompt.
        generator: on the CPU.
    """

    def __init__(self, objective: Classification, train: Encoded, tokens: int, generator: torch.Generator) -> None:
        self.objective, self.train, self.tokens, self.generator = objective, train, tokens, generator

    def examples(self) -> str:
        """Short examples of every label with its word, in random order, as many tokens as a prompt has: a few-shot prompt.

        It has the form of the template, and half of the time the mark that most texts end with after every word. If no
        examples fit, a demonstration by words.
        """

        def below(count: int) -> int:
            return int(torch.randint(count, (1,), generator=self.generator))

        model, words, tokens = self.objective.model, self.objective.words, self.tokens
        mark = self.mark if below(2) else ""
        answer = 1 + bool(mark)  # tokens
        shortest = max(min(map(len, some), default=tokens) for some in self.short)
        most = min(_TURNS, tokens // (len(words) * (shortest + answer)))
        for _ in range(_DRAWS if most else 0):
            order = torch.randperm(len(words), generator=self.generator).tolist() * (1 + below(most))
            room, parts = tokens - answer * len(order), list[str]()
            for left, label in zip(reversed(range(len(order))), order, strict=True):
                fitting = [
                    e for e in self.short[label] if (len(e) <= room - left * shortest if left else len(e) == room)
                ]
                if not fitting:
                    break
                ending = fitting[below(len(fitting))]
                parts.append(f"{model.text_of(ending)} {words[label]}{mark}")
                room -= len(ending)
            text = " ".join(parts)
            if not room and len(model.encode([text])[0]) == tokens:
                return text
        return self.demonstration()

    @functools.cached_property
    def short(self) -> list[list[list[int]]]:
        """For every label, the token ids of the examples, with the words of the template, that are shorter than a prompt."""
        found = list[list[list[int]]]([] for _ in self.objective.words)
        for ending, label in zip(self.train.endings, self.train.labels.tolist(), strict=True):
            if len(ending) < self.tokens:
                found[label].append(ending)
        return found

    def demonstration(self) -> str:
        """Every label word once, after one or two words that suit it, in random order.

        It has the form of the template, and half of the time the mark that most texts end with, if there is room.
        """
        model, closing, parts = self.objective.model, self.objective.template.after, list[tuple[list[str], str]]()
        for label in torch.randperm(len(self.objective.words), generator=self.generator).tolist():
            suited = self.suited[label]
            drawn = torch.randint(len(suited), (2,), generator=self.generator).tolist()
            parts.append(([model.text_of([suited[i]]) for i in drawn], self.objective.words[label]))
        marks = [self.mark, ""] if torch.randint(2, (1,), generator=self.generator) else ["", self.mark]
        texts = [
            " ".join(f"{' '.join(some[:count])}{mark}{closing} {word}" for some, word in parts)
            for mark in marks
            for count in (2, 1)
        ]
        texts += [" ".join(f"{some[0]} {word}" for some, word in parts), " ".join(word for _, word in parts)]
        # A capital often makes the first word one token.
        texts = [form for text in texts for form in (text, text[:1].upper() + text[1:])]
        return next((t for t in texts if len(model.encode([t])[0]) <= self.tokens), texts[-1])

    @functools.cached_property
    def mark(self) -> str:
        """The punctuation mark that more than half of the texts end with, or nothing."""
        before, closed = self.objective.model.encode([_ANCHOR, f"{_ANCHOR}{self.objective.template.after}"])
        place = len(before) - len(closed) - 1
        found = Counter(ending[place] for ending in self.train.endings if len(ending) >= -place)
        token, count = found.most_common(1)[0] if found else (0, 0)
        text = self.objective.model.text_of([token])
        return text if 2 * count > len(self.train) and not any(c.isalnum() for c in text) else ""

    @functools.cached_property
    def suited(self) -> list[list[int]]:
        """Token ids for every label: half are close to its word in the embedding, half are typical of it in the examples.

        Source: Monroe et al. 2008, "Fightin' Words", the z-score of the log-odds ratio with a prior.
        """
        model, words = self.objective.model, self.objective.model.vocabulary.later
        counts = torch.full((len(self.objective.words), len(model.embedding)), 0.1, dtype=torch.float64)
        for ending, label in zip(self.train.endings, self.train.labels.tolist(), strict=True):
            counts[label].scatter_add_(0, torch.tensor(ending), torch.ones(len(ending), dtype=torch.float64))
        found = []
        for label, answer in enumerate(self.objective.answers.tolist()):
            own, other = counts[label], counts.sum(0) - counts[label]
            odds = [(part / (part.sum() - part)).log() for part in (own, other)]
            score = ((odds[0] - odds[1]) / (1 / own + 1 / other).sqrt())[words.ids.cpu()]
            near = (words.units @ model.embedding[answer]).topk(min(_SUITED, len(words.ids))).indices
            typical = score.topk(min(_SUITED, len(words.ids))).indices
            found.append(words.rows[near].tolist() + words.ids.cpu()[typical].tolist())
        return found

    def repeated(self, words: Sequence[str]) -> str:
        """The words in turns, as many tokens as a prompt has, if some form of that has no word of several tokens.

        At the start of a text, a word may be more tokens than later; a capital, or another word to begin with, often helps.
        """
        forms = []
        for first in range(len(words)):
            text = " ".join(itertools.islice(itertools.cycle([*words[first:], *words[:first]]), self.tokens))
            forms += [text, text[:1].upper() + text[1:]]
        read = self.objective.model.encode(forms)
        return next((form for form, ids in zip(forms, read, strict=True) if len(ids) == self.tokens), forms[0])

    def fitted(self, texts: Sequence[str]) -> Tensor:
        """(texts, tokens) int64: texts cut to the number of tokens, or with random words before them."""
        tokens, model, found = self.tokens, self.objective.model, []
        for text in texts:
            drawn = model.vocabulary.random_ids(tokens, self.generator)
            missing = tokens - len(model.encode([text])[0])
            if missing > 0:
                text = f"{model.text_of(drawn[:missing].tolist())} {text}"
            ids = model.encode([text])[0]
            found.append(ids[-tokens:] if len(ids) >= tokens else drawn.tolist())
        return torch.tensor(found, device=model.device)
