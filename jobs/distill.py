"""Shorten texts to hard prompts of a few tokens that mean the same to CLIP.

    python -m jobs.distill --text 'a very long prompt ...' --tokens 4
    python -m jobs.distill --input prompts.parquet --column prompt --output short --tokens 8
    python -m jobs.distill --input prompts.txt --output short --tokens 16 --keep 0.95  # the fewest tokens, up to 16
    python -m jobs.distill --input out --column prompt --output short --tokens 4     # out: the output of jobs.caption

A table is Parquet, JSON lines, CSV, or plain text with one text per line. Each row becomes one row of the output, in a Parquet
file of the same name; `text` holds the original text. Re-run the command to resume; with --retry-failed it also redoes the
failed rows.
Exit status: 0 = all tables are done, 1 = some failed, 2 = bad usage.
Source: Wen et al. 2023, arXiv:2302.03668, section 4.3.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import pez
from jobs import command, driver
from jobs.arguments import Group, flags_of
from jobs.live import LivePrompts
from jobs.options import (
    RunOptions,
    expect_device,
    expect_output,
    refuse_beside_demo,
    refuse_ignored,
    refuse_without,
    resolved_method,
)
from pez.errors import UserError
from pez.models.names import is_demo
from pez.settings import ModelSettings
from pipeline.settings import Bookkeeping, ClusterSettings, DistillSettings
from pipeline.terminal import Activity, open_console, say

if TYPE_CHECKING:
    from pipeline.sources.found import Found


@dataclasses.dataclass(frozen=True)
class DistillJob(RunOptions):
    """Options of `pez distill`."""

    text: tuple[str, ...] = ()
    """texts to shorten; their prompts are printed"""
    input: tuple[str, ...] = ()
    """tables of texts, Parquet, JSON lines, CSV or plain text: paths or URLs, with {000..999} or *; folders; outputs of pez;
    or @FILE, which lists one per line"""
    output: str | None = None
    """folder for the Parquet files of --input: local, s3://, gs://"""
    demo: bool = False
    """use a demo model; no network, no GPU; without texts, four captions of drawn scenes"""
    bookkeeping: Bookkeeping | None = None
    """where to keep reports and settings: inside the output (default), or beside it in OUTPUT.pez, for readers such as
    Polars that read every file of a folder"""
    retry_failed: bool = False
    """also redo rows that failed in an earlier run, and only those"""
    texts: Annotated[DistillSettings, Group("model")] = DistillSettings()
    method: Annotated[pez.PezSettings, Group("method")] = pez.PezSettings()

    def check(self, given: frozenset[str]) -> None:
        """Refuse options that would be ignored, and everything that can be checked without loading anything."""
        if self.text and self.input:
            raise UserError("--text and --input are both given; expected one of them")
        if not self.text and not self.input and not self.demo:
            raise UserError("no text given; expected --text 'a long prompt', --input TABLE --output OUT, or --demo")
        if self.demo:
            refuse_beside_demo(self.texts, given)
        refuse_without("input", given, _of_tables(), "without --input TABLE")
        if self.input:
            if self.output is None:
                raise UserError("no output given; expected --output with a folder for the tables")
            expect_output(self.output)
        refuse_ignored(given, self.method, self.texts)
        expect_device(self.device, on_ray=bool(self.input) and not self.local)


def _of_tables() -> set[str]:
    """Options that apply to tables only."""
    every = {flag.path[-1] for flag in (*flags_of(DistillSettings), *flags_of(ClusterSettings))}
    every -= {"keep", *(flag.path[-1] for flag in flags_of(ModelSettings))}
    return every | {"output", "bookkeeping", "retry_failed", "local"}


def distill(job: DistillJob) -> int:
    """Run the job; returns its exit status."""
    if job.demo and not is_demo(job.texts):
        job = dataclasses.replace(job, texts=dataclasses.replace(job.texts, model="demo"))
    job = dataclasses.replace(job, method=resolved_method(job.method, job.texts))
    return _shorten_tables(job) if job.input else _shorten_texts(job)


def _shorten_tables(job: DistillJob) -> int:
    """Learn a prompt for each row of the tables and write them as tables."""
    assert job.output is not None, "checked"

    def find(left_out: Counter[str]) -> Found:
        from pipeline.sources.found import Found
        from pipeline.sources.inputs import TABLES, expand_inputs

        return Found(expand_inputs(job.input, job.output, left_out, TABLES))

    return driver.run(
        driver.TableJob(
            settings=job.texts,
            method=job.method,
            find=find,
            output=job.output,
            bookkeeping=job.bookkeeping,
            retry_failed=job.retry_failed,
            device=job.device,
            local=job.local,
            cluster=job.cluster,
            noun="text",
            note=_note_on_the_demo(job.texts),
        )
    )


def _note_on_the_demo(settings: ModelSettings) -> str | None:
    """A note on the limits of the demo models."""
    if not is_demo(settings):
        return None
    return (
        f"note: the model {settings.name} knows only captions of drawn scenes; its prompts for other texts are meaningless. "
        "Use --model ViT-L-14 --pretrained openai, or omit --model for ViT-H-14"
    )


def _shorten_texts(job: DistillJob) -> int:
    """Learn and print a prompt for each text on the command line."""
    console = open_console()
    with Activity(console, "loading PyTorch") as activity:
        with command.importing():
            from pez.models.load import check_models, load_model
            from pez.template import template_of

        check_models(job.texts, job.method.tokens, template_of(job.method))
        device = job.local_device()
        if job.text and (note := _note_on_the_demo(job.texts)):
            say(console, note)
        texts = job.text or _captions_of_scenes()
        activity.now(f"loading {job.texts.name}")
        clip = load_model(job.texts, device)
    rows: list[tuple[str, str, float]] = []
    show = LivePrompts(clip, [], job.method, console, "text")
    try:
        for text in texts:
            name = " ".join(text.split())
            show = LivePrompts(clip, [name], job.method, console, "text")
            if job.texts.keep is not None:  # every length may be tried
                show.steps *= job.method.tokens
            with show:
                prompt = pez.distill(clip, text, job.method, show.step, job.texts.keep)
            rows.append((name, prompt.text, prompt.similarity))
    except KeyboardInterrupt:
        best = [*rows, *show.best_prompts()]
        if best:
            console.print(show.table(best, "best so far"))
        raise KeyboardInterrupt(f"after {show.taken} of {show.steps} steps" if best else "") from None
    console.print(show.table(rows, "prompt"))
    return 0


def _captions_of_scenes() -> tuple[str, ...]:
    from pez.demo import scenes

    return tuple(scenes.caption(scene) for scene in scenes.held_out_scenes(4))


def main(prog: str | None = None) -> None:
    command.run(DistillJob, __doc__, distill, prog)


if __name__ == "__main__":
    main()
