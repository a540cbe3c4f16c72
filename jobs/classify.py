"""Learn prompts that make a language model a better text classifier, or measure a given prompt.

    python -m jobs.classify --demo                                              # shipped model, generated reviews
    python -m jobs.classify --model gpt2-large --task sst2 --output out
    python -m jobs.classify --model FOLDER --data reviews.csv --text-field text --label-field label \\
        --verbalizer 'negative=terrible,positive=great' --output out --json out.json
    python -m jobs.classify --model FOLDER --data reviews.csv --prompt 'an honest verdict'   # measures only

The model answers with the label whose word is the most likely one after `[prompt] [text] [template]`. The best prompt is the
one with the highest accuracy on a held-out part of the data. The accuracy that is reported is that of its text on a test part,
on which nothing was chosen. The empty prompt and prompts of random words are measured beside it.

Several methods, seeds and restarts are a sweep, whose units run on Ray or, with --local, in this process. Re-run the command to
resume. Exit status: 0 = all units are done, 1 = some failed, 2 = bad usage.
Source: Wen et al. 2023, arXiv:2302.03668, section 5.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from jobs import command
from jobs.arguments import Group
from jobs.options import (
    RunOptions,
    expect_device,
    expect_device_here,
    expect_output,
    expect_writable,
    refuse_ignored,
    refuse_without,
)
from pez.classification import (
    LABELS,
    PRESETS,
    Examples,
    Question,
    SearchMethod,
    SearchSettings,
    Template,
    read_verbalizer,
)
from pez.errors import UserError
from pipeline.terminal import Activity, count, open_console, plain, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from pipeline.classified import PromptRow, PromptRows, SearchUnit
    from pipeline.failures import FailureLog
    from pipeline.run.resources import ActorPlan
    from pipeline.stages.classify import ClassifyStage

_TRAIN = 20_000  # the most examples that prompts are learned from


@dataclasses.dataclass(frozen=True)
class ClassifyJob(RunOptions):
    """Options of `pez classify`."""

    data: str | None = None
    """labelled texts: a table (Parquet, CSV, JSON lines), or the name of a data set on the hub, such as ag_news or
    ag_news:test"""
    heldout: str | None = None
    """a table that prompts are chosen by; default = a part of the data"""
    test: str | None = None
    """a table that the chosen prompts are measured on; default = a part of the data"""
    task: str | None = None
    """sst2, agnews or amazon: data, fields, template and words as in the paper; other options override them"""
    text_field: str | None = None
    """field of the texts; default = text"""
    label_field: str | None = None
    """field of the labels; default = label"""
    output: str | None = None
    """folder for the table of prompts: local, s3://, gs://; default = only print them"""
    json: Path | None = None
    """write the results to this file"""
    prompt: str | None = None
    """do not learn; measure this prompt and the empty one on all examples"""
    demo: bool = False
    """use the shipped language model and generated reviews, with 10 rounds if no --steps are given; no network, no GPU"""
    model: Annotated[str, Group("model")] = "demo-lm"
    """a causal language model: a folder of transformers, a hub id, a .gguf file, or demo-lm"""
    score_model: Annotated[tuple[str, ...], Group("model")] = ()
    """other language models, under which the same prompts are measured too"""
    template: Annotated[str | None, Group("model")] = None
    """default = '{prompt} {text} It was {label}'"""
    verbalizer: Annotated[str | None, Group("model")] = None
    """a word for each label; default = negative=terrible,positive=great"""
    text_tokens: Annotated[int, Group("model")] = 128
    """longer texts lose their end"""
    heldout_examples: Annotated[int, Group("method")] = 200
    """examples that prompts are chosen by"""
    test_examples: Annotated[int | None, Group("method")] = None
    """examples that the chosen prompts are measured on; default = 1000, or all of --test; with --prompt, all"""
    method: Annotated[tuple[SearchMethod, ...], Group("method")] = ()
    """one or more: default, pez, autoprompt, fluentprompt, gcg, random; default starts from the best of many short prompts and
    improves it by swaps"""
    seed: Annotated[tuple[int, ...], Group("method")] = ()
    """one or more seeds; default = 0"""
    restarts_per_unit: Annotated[int, Group("method")] = 8
    """restarts that are learned side by side"""
    random_prompts: Annotated[int, Group("method")] = 8
    """prompts of random words to compare with"""
    search: Annotated[SearchSettings, Group("method")] = SearchSettings()

    def check(self, given: frozenset[str]) -> None:
        """Refuse options that would be ignored, and everything that can be checked without loading anything."""
        if self.task is not None and self.task not in PRESETS:
            raise UserError(f"--task is {self.task!r}; expected one of {', '.join(PRESETS)}")
        if self.demo:
            refuse_without("", given, {"data", "heldout", "test", "task", "model"}, "with --demo, which has its own")
        elif self.data is None and self.task is None and not (self.prompt is not None and self.test):
            raise UserError("no data given; expected --data TABLE, --task sst2, or --demo")
        if self.prompt is not None:
            of_searches = {field.name for field in dataclasses.fields(SearchSettings)} | {
                "method", "seed", "restarts_per_unit", "random_prompts", "output", "heldout", "heldout_examples",
            }  # fmt: skip
            refuse_without("", given, of_searches, "with --prompt, which learns nothing")
        template_of(self)
        words_of(self)
        least = {"text_tokens": 1, "heldout_examples": 2, "restarts_per_unit": 1, "random_prompts": 0}
        for name, bound in least.items():
            if (value := getattr(self, name)) < bound:
                raise UserError(f"{name} is {value}; expected {bound} or more")
        if self.test_examples is not None and self.test_examples < 1:
            raise UserError(f"test_examples is {self.test_examples}; expected 1 or more")
        if self.output is not None:
            expect_output(self.output)
        expect_writable(self.json, "--json")
        refuse_ignored(given - {"score_model"})  # here it is not an option of verification
        expect_device(self.device, on_ray=not self.local)


def template_of(job: ClassifyJob) -> Template:
    """The template of a job."""
    preset = PRESETS[job.task].template if job.task else "{prompt} {text} It was {label}"
    return Template(job.template if job.template is not None else preset)


def words_of(job: ClassifyJob) -> dict[str, str]:
    """The words of a job by label."""
    preset = PRESETS[job.task].verbalizer if job.task else "negative=terrible,positive=great"
    return read_verbalizer(job.verbalizer if job.verbalizer is not None else preset)


def classify(job: ClassifyJob) -> int:
    """Run the job; returns its exit status."""
    if job.demo and not job.method and job.search.steps is None:  # enough for generated reviews
        job = dataclasses.replace(job, search=dataclasses.replace(job.search, steps=10))
    console = open_console()
    with Activity(console, "loading PyTorch") as activity:
        with command.importing():
            import pipeline.stages.classify  # noqa: F401
        activity.now("reading the examples")
        question = _question(job)
    parts = (
        f"{len(question.train):,} to learn from, {len(question.heldout):,} held out, {len(question.test):,} to test on"
    )
    say(console, f"examples: {len(question.test):,}" if job.prompt is not None else f"examples: {parts}")
    return _measure(job, question, console) if job.prompt is not None else _learn(job, question, console)


def _question(job: ClassifyJob) -> Question:
    """Read the examples and divide them.

    Raises:
        UserError: they cannot be read, or are too few.
    """
    from pez.demo.reviews import labelled_reviews
    from pipeline.sources.labelled import read_labelled

    words, preset = words_of(job), PRESETS[job.task] if job.task else None
    text = job.text_field or (preset.text_field if preset else "text")
    label = job.label_field or (preset.label_field if preset else "label")

    def read(where: str) -> Examples:
        return read_labelled(where, text, label, words)

    nothing = Examples((), ())
    data = job.data or (preset.data if preset and job.test is None else None)
    given = Examples.of(labelled_reviews(2000), words, "the demo") if job.demo else read(data) if data else nothing
    if job.prompt is not None:
        test = read(job.test) if job.test else given
        test = test.some(job.test_examples or len(test), "test")
        return Question(template_of(job), words, job.text_tokens, nothing, nothing, test)
    train, heldout, test = given.split(
        0 if job.heldout else job.heldout_examples, 0 if job.test else job.test_examples or 1000
    )
    heldout = read(job.heldout).some(job.heldout_examples, "heldout") if job.heldout else heldout
    test = (found := read(job.test)).some(job.test_examples or len(found), "test") if job.test else test
    for name, part in (("to learn from", train), ("held out", heldout), ("to test on", test)):
        if len(set(part.labels)) < len(set(given.labels)):
            raise UserError(f"the {len(part)} examples {name} lack a label; expected more data, of every label")
    return Question(template_of(job), words, job.text_tokens, train.some(_TRAIN, "train"), heldout, test)


def _measure(job: ClassifyJob, question: Question, console: Console) -> int:
    """Measure a given prompt and the empty one under each model."""
    from pipeline.stages.classify import measure_prompts

    assert job.prompt is not None, "the caller checks"
    device, rows, values = job.local_device(), [], dict[str, Any]()
    for name in (job.model, *job.score_model):
        with Activity(console, f"measuring under {name}"):
            (found, perplexity), (empty, _) = measure_prompts(
                name, question, [job.prompt, ""], job.search.tokens, device
            )
        rows.append((name, f"{found.accuracy:.3f}", f"{empty.accuracy:.3f}", f"{found.loss:.3f}"))
        values[name] = {
            "accuracy": found.accuracy,
            "empty_accuracy": empty.accuracy,
            "loss": found.loss,
            "empty_loss": empty.loss,
            "perplexity": perplexity,
        }
    from jobs.outcomes import table

    console.print(table(("model", "accuracy", "without a prompt", "loss"), rows))
    others = {Path(name).name: values[name] for name in job.score_model}
    measured = {"prompt": job.prompt, "examples": len(question.test), **values[job.model]}
    _write_json(job, {"model": Path(job.model).name, **measured, "score_models": others})
    return 0


def _learn(job: ClassifyJob, question: Question, console: Console) -> int:
    """Run the sweep; returns the exit status."""
    import tempfile

    if job.output is not None:
        return _sweep(job, job.output, question, console)
    with tempfile.TemporaryDirectory() as folder:
        return _sweep(job, folder, question, console)


def _sweep(job: ClassifyJob, output: str, question: Question, console: Console) -> int:
    from pipeline.classified import PromptRows, described_sweep, search_units
    from pipeline.classify_progress import ClassifyProgress
    from pipeline.failures import FailureLog
    from pipeline.stages.classify import ClassifyStage

    described = described_sweep(
        job.model, job.score_model, question, job.search, job.restarts_per_unit, job.random_prompts
    )
    table = PromptRows(output, described)
    table.check()
    units = search_units(job.method or ("default",), job.seed or (0,), job.search.restarts, job.restarts_per_unit)
    done, pending = table.divide(units)
    stage = ClassifyStage(job.model, job.score_model, question, job.search, job.random_prompts, table.source, described)
    progress = ClassifyProgress(len(units), len(done), console)
    failures, failed = FailureLog(table), dict[str, str]()
    try:
        if not pending:
            say(console, f"nothing to do: all {count(len(units), 'unit')} are done")
        elif job.local:
            failed = _serially(job, stage, table, units, pending, progress, failures)
        else:
            failed = _on_ray(job, stage, table, units, pending, progress, failures)
    except KeyboardInterrupt:
        so_far = f"{progress.finished} of {count(len(units), 'unit')} are done"
        raise KeyboardInterrupt(f"{so_far}; re-run the command to resume" if job.output else so_far) from None
    failures.conclude(failed, units)
    for url, reason in failures.located(failed, units).items():
        say(console, plain(f"failed: {url}: {reason}"), "red")
    if failed:
        say(console, f"{len(failed)} of {count(len(units), 'unit')} failed; re-run the command to retry")
        return 1
    table.succeed(units)
    _conclude(job, [row for unit in table.divide(units)[0] for row in table.read_prompts(unit)], question, console)
    return 0


def _serially(
    job: ClassifyJob,
    stage: ClassifyStage,
    table: PromptRows,
    units: Sequence[SearchUnit],
    pending: Sequence[Any],
    progress: Any,
    failures: FailureLog,
) -> dict[str, str]:
    from pipeline.run.serial import run_serially
    from pipeline.run.tasks import tasks_of

    device = job.local_device()
    with progress:
        progress.doing(f"loading {job.model}")
        worker = stage.open(device, 0)
        table.claim()
        table.record(units)
        progress.watch(worker)
        return run_serially(
            tasks_of(pending), worker, progress.report_classified, job.cluster.attempts, progress.note, failures.record
        )


def _on_ray(
    job: ClassifyJob,
    stage: ClassifyStage,
    table: PromptRows,
    units: Sequence[SearchUnit],
    pending: Sequence[Any],
    progress: Any,
    failures: FailureLog,
) -> dict[str, str]:
    from pipeline.run.ray import connect, plan_stage, run_on_ray, seen_by_actors
    from pipeline.run.resources import learn_plan
    from pipeline.run.tasks import tasks_of

    expect_device_here(job.device, job.cluster)
    plan: ActorPlan = learn_plan(job.cluster, job.device, connect(job.cluster))
    with progress:
        progress.doing(f"starting {count(plan.actors, 'actor')} for {job.model}")
        table.claim()
        table.record(units)
        with seen_by_actors(table, []) as disk:
            planned = plan_stage(stage, plan, progress.report_classified, disk=disk)
            return run_on_ray(tasks_of(pending), [planned], job.cluster, progress.look, progress.note, failures.record)


def _conclude(job: ClassifyJob, rows: list[PromptRow], question: Question, console: Console) -> None:
    """Print the best prompt of each method and seed beside the empty and the random ones, and write the JSON file."""
    from jobs.outcomes import table
    from pipeline.stages.classify import EMPTY, RANDOM

    empty = next(row for row in rows if row.method == EMPTY)
    drawn = [row for row in rows if row.method == RANDOM]
    learned = [row for row in rows if row.method in LABELS]
    shown, texts = [("without a prompt", "", *_figures([empty]))], list[str]()
    if drawn:
        shown.append((f"random words, mean of {len(drawn)}", "", *_figures(drawn)))
    for method, seed in dict.fromkeys((row.method, row.seed) for row in learned):
        best, label = best_of([row for row in learned if (row.method, row.seed) == (method, seed)]), LABELS[method]  # type: ignore[index]
        shown.append((label, str(seed), *_figures([best])))
        texts.append(f"{label}, seed {seed}: {best.prompt}")
    columns = ("prompts", "seed", "held-out", "test", *(f"under {name}" for name in empty.score_models))
    console.print(table(columns, [tuple(map(plain, cells)) for cells in shown]))
    best = best_of(learned)
    for text in (*(texts if len(texts) > 1 else ()), f"best: {best.prompt}"):  # prompts may be longer than a line
        say(console, plain(text))
    _write_json(
        job,
        {
            "model": Path(job.model).name,
            "template": question.template.text,
            "verbalizer": question.verbalizer,
            "examples": {name: len(getattr(question, name)) for name in ("train", "heldout", "test")},
            "best": _values(best),
            "empty_accuracy": empty.test_accuracy,
            "random_accuracy": statistics.fmean(row.test_accuracy or 0.0 for row in drawn) if drawn else None,
            "rows": [_values(row) for row in rows],
        },
    )


def best_of(rows: Sequence[PromptRow]) -> PromptRow:
    """The prompt of the highest held-out accuracy; ties by the held-out loss."""
    return max(rows, key=lambda row: (row.heldout_accuracy or 0.0, -(row.heldout_loss or 0.0)))


def _figures(rows: Sequence[PromptRow]) -> tuple[str, ...]:
    """Mean accuracies: held-out, test, and under each of the other models."""
    columns = [[row.heldout_accuracy, row.test_accuracy, *row.score_accuracies] for row in rows]
    return tuple(f"{statistics.fmean(v for v in values if v is not None):.3f}" for values in zip(*columns, strict=True))


def _values(row: PromptRow) -> dict[str, Any]:
    """A row as JSON values, its test accuracy also as `accuracy`."""
    return {**dataclasses.asdict(row), "accuracy": row.test_accuracy}


def _write_json(job: ClassifyJob, values: dict[str, Any]) -> None:
    if job.json is not None:
        job.json.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(prog: str | None = None) -> None:
    command.run(ClassifyJob, __doc__, classify, prog)


if __name__ == "__main__":
    main()
