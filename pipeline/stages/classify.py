"""The stage that learns prompts for text classification. A unit is a group of restarts, learned side by side."""

import dataclasses
import time
from typing import Any

import torch

from pez.classification import Question, SearchSettings
from pez.methods.language_model import Candidate, Search
from pez.models.language_model import LanguageModel, load_language_model
from pez.modes import own_modes
from pez.objectives.language_model import Classification, Encoded, Measured
from pez.seeds import generator_for
from pipeline.classified import PromptRow, PromptRows, SearchUnit
from pipeline.rows import ShardReport
from pipeline.run import warning_log
from pipeline.run.tasks import Task

EMPTY, RANDOM = "empty", "random words"
"""the methods of the prompts to compare with"""


@dataclasses.dataclass
class SearchProgress:
    """The progress of the current unit, for display."""

    unit: str = ""
    step: int = 0
    steps: int = 0
    accuracy: float = 0.0
    """held-out, of the best prompt so far"""


@dataclasses.dataclass(frozen=True)
class ClassifyStage:
    """Learn prompts into an output folder.

    Args:
        model, score_models: names of language models.
        random_prompts: prompts of random words to compare with.
        output: URL to open; it may contain a password.
        described: the settings that determine the rows.
    """

    model: str
    score_models: tuple[str, ...]
    question: Question
    search: SearchSettings
    random_prompts: int
    output: str
    described: dict[str, Any]
    name: str = "learning"

    def open(self, device: str, threads: int) -> "ClassifyWorker":
        """Load the models."""
        models = [load_language_model(name, device) for name in (self.model, *self.score_models)]
        engine = models[0].in_bfloat16() if self.search.precision == "bf16" else models[0]
        return ClassifyWorker(self, models, engine, PromptRows(self.output, self.described))


class ClassifyWorker:
    """The models and the encoded examples; see ClassifyStage."""

    def __init__(
        self, stage: ClassifyStage, models: list[LanguageModel], engine: LanguageModel, table: PromptRows
    ) -> None:
        self.stage, self.table = stage, table
        question, search = stage.question, stage.search
        self.objectives = [
            Classification(
                model,
                question.template,
                question.verbalizer,
                search.tokens,
                question.text_tokens,
                search.fluency,
                engine if model is models[0] else None,
            )
            for model in models
        ]
        self.objective = self.objectives[0]
        self.train, self.heldout = map(self.objective.encode, (question.train, question.heldout))
        self.tests = [objective.encode(question.test) for objective in self.objectives]
        self.progress = SearchProgress()

    def run(self, task: Task) -> ShardReport:
        """Learn the prompts of a unit, or measure those to compare with."""
        unit = task.unit
        assert isinstance(unit, SearchUnit), "the job has no other units"
        if report := self.table.finished(unit):
            return report
        start = time.monotonic()
        with own_modes(), warning_log.recording() as warnings:
            rows = self._learned(unit) if unit.restarts else self._compared(unit)
        return self.table.publish_prompts(unit, rows, time.monotonic() - start, list(dict.fromkeys(warnings)))

    def row(self, method: str, text: str, heldout: Measured | None = None) -> PromptRow:
        """A prompt with everything that is measured of a text."""
        heldout = heldout or self.objective.measure(text, self.heldout)
        test, *others = [o.measure(text, test) for o, test in zip(self.objectives, self.tests, strict=True)]
        return PromptRow(
            method=method,
            prompt=text,
            model=self.objective.model.name,
            tokens=len(self.objective.model.encode([text])[0]),
            heldout_accuracy=heldout.accuracy,
            heldout_loss=heldout.loss,
            test_accuracy=test.accuracy,
            test_loss=test.loss,
            perplexity=self.objective.perplexity(text) if text else None,
            score_models=[objective.model.name for objective in self.objectives[1:]],
            score_accuracies=[other.accuracy for other in others],
        )

    def _learned(self, unit: SearchUnit) -> list[PromptRow]:
        settings = self.stage.search
        search = Search(self.objective, self.train, self.heldout, settings, unit.method, unit.seed, unit.restarts)
        progress = self.progress = SearchProgress(unit.url, 0, settings.steps_of(unit.method))

        def show(step: int, best: list[Candidate | None]) -> None:
            progress.step = step
            progress.accuracy = max(one.heldout.accuracy for one in best if one is not None)

        found = search.run(show)
        return [
            dataclasses.replace(
                self.row(unit.method, candidate.text, candidate.heldout),
                seed=unit.seed,
                restart=restart,
                step=candidate.step,
                steps=search.steps,
                million_passes=search.passes,
            )
            for restart, candidate in zip(unit.restarts, found, strict=True)
        ]

    def _compared(self, unit: SearchUnit) -> list[PromptRow]:
        """The empty prompt, and prompts of random words."""
        count, model = self.stage.random_prompts, self.objective.model
        self.progress = SearchProgress(unit.url, 0, 1 + count)
        rows = [self.row(EMPTY, "")]
        for number in range(count):
            self.progress.step = 1 + number
            ids = model.vocabulary.random_ids(self.stage.search.tokens, generator_for(unit.seed, RANDOM, number))
            rows.append(dataclasses.replace(self.row(RANDOM, model.text_of(ids.tolist())), restart=number))
        return rows


def measure_prompts(
    name: str, question: Question, prompts: list[str], tokens: int, device: str | torch.device
) -> list[tuple[Measured, float | None]]:
    """Accuracy, loss and perplexity of given prompts on the test part."""
    model = load_language_model(name, device)
    longest = max([tokens, *(len(ids) for ids in model.encode(prompts))])
    objective = Classification(model, question.template, question.verbalizer, longest, question.text_tokens)
    test: Encoded = objective.encode(question.test)
    return [(objective.measure(text, test), objective.perplexity(text) if text.strip() else None) for text in prompts]
