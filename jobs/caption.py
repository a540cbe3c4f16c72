"""Learn a hard prompt for every image of a WebDataset and write them as Parquet.

    python -m jobs.caption --demo --output out
    python -m jobs.caption --input 's3://bucket/{00000..00999}.tar' --output s3://bucket/prompts --tokens 16
    python -m jobs.caption --demo --output out --verify demo        # paints each prompt and compares

The same command again goes on where the last one stopped; with --retry-failed it also redoes the rows that failed.
Exit status: 0 all shards are done, 1 some failed, 2 bad usage.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import secrets
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from jobs import command
from jobs.options import (
    LearnOptions,
    RunOptions,
    VerifyOptions,
    expect_device,
    expect_device_here,
    expect_output,
    of_demo,
    refuse_beside_demo,
    refuse_ignored,
)
from pez.demo import CLIPS
from pez.errors import UserError
from pipeline.errors import OutputError
from pipeline.settings import Bookkeeping
from pipeline.terminal import Activity, count, open_console, plain, prompt_table, say

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.progress import JobProgress
    from pipeline.rows import ShardReport
    from pipeline.run.cluster import ActorPlan
    from pipeline.settings import ClusterSettings
    from pipeline.sources.shards import Shard
    from pipeline.stages.verified_table import VerifiedTable
    from pipeline.table import PromptTable

_READS_AT_ONCE = 32
_EARLIER = 256  # reports of finished shards that are read again, for the counts of what was left out


@dataclasses.dataclass(frozen=True)
class CaptionJob(LearnOptions, VerifyOptions, RunOptions):
    """Options of the job."""

    output: str
    """folder for the Parquet files: local, s3://, gs://"""
    input: tuple[str, ...] = ()
    """tars: addresses with {000..999} or *, folders, or @FILE with one a line"""
    demo: bool = False
    """shipped pictures and model; no network, no GPU"""
    bookkeeping: Bookkeeping | None = None
    """where reports and settings are: inside the output (the default), or beside it in OUTPUT.pez for readers that take
    every file of a folder, like Polars"""
    retry_failed: bool = False
    """also caption those again that an earlier run has as failed rows, and only those"""

    def check(self, given: frozenset[str]) -> None:
        """Refuse what could only be ignored, and what can be told without loading anything."""
        if self.demo:
            refuse_beside_demo(self.caption, given, ["input"])
        refuse_ignored(given)
        expect_device(self.device, on_ray=not self.local)
        expect_output(self.output)


def caption(job: CaptionJob) -> int:
    """Run the job; returns its exit status."""
    if not job.input and not job.demo:
        raise UserError("no input given; expected --input with the address of a tar, or --demo")
    console = open_console()
    with Activity(console, "loading PyTorch" if job.local else "loading PyTorch and Ray") as activity:
        with command.importing():
            if not job.local:
                import pipeline.run.cluster  # noqa: F401
            from pipeline.description import describe, in_full
            from pipeline.progress import JobProgress
            from pipeline.run.hub import check_reachable
            from pipeline.run.shared_disk import check_outside_package
            from pipeline.settings import cluster_address
            from pipeline.sources.demo_shards import demo_shards
            from pipeline.sources.inputs import expand_shards
            from pipeline.stages.learn import check_settings
            from pipeline.stages.parts import sweep_parts
            from pipeline.stages.verify import check_verification, resolved, score_model, verified_table
            from pipeline.table import PromptTable

        if job.demo:
            job = dataclasses.replace(job, caption=of_demo(job.caption))
        check_settings(job.caption, job.method)
        verifies = job.verification.verify is not None
        if verifies:
            job = dataclasses.replace(job, verification=resolved(job.verification))
            check_verification(job.verification, job.caption.model, job.caption.pretrained)
        device = verify_device = job.local_device() if job.local else ""
        check_outside_package([job.output], "output")
        not_taken: Counter[str] = Counter()
        shards = expand_shards([*job.input, *(demo_shards() if job.demo else ())], job.output, not_taken)
        check_outside_package([shard.url for shard in shards], "input")
        plans = None
        if not job.local:
            expect_device_here(job.device, job.cluster)
            activity.now(connecting(job.cluster))
            plans = _plans(job)
            device, verify_device = (plan.device for plan in plans)
        activity.now(f"looking into {job.output}")
        described = describe(job.caption, job.method, device)
        table = PromptTable(job.output, described, job.bookkeeping, in_full(job.caption, job.method, device))
        table.check()
        done, pending = table.divide(shards, job.retry_failed)
        shards = [*done, *pending]  # with the stems that they have in this folder
        verified = verified_table(table, job.verification, verify_device) if verifies else None
        work = _Work(table, shards, pending, verified, verified.pending(done) if verified else [])
        if job.local or not cluster_address(job.cluster):  # nodes elsewhere may have what is not here
            if work.pending:
                check_reachable(job.caption.model, job.caption.pretrained)
            if verifies and (work.pending or work.unverified):
                check_reachable(*score_model(job.verification, job.caption.model))
    if job.input:
        tell_of_the_demo(job.caption.model, console)
    already_verified = len(done) - len(work.unverified) if verified else None
    progress = JobProgress(len(shards), len(done), console, verified=already_verified)
    failed: dict[str, str] = {}
    try:
        if not work.pending and not work.unverified:
            say(console, f"nothing to do: {all_are(len(shards), 'done and verified' if verifies else 'done')}")
        else:
            with progress:
                failed = _on_ray(job, work, plans, progress) if plans else _serially(job, work, device, progress)
    except KeyboardInterrupt:
        told = f"{progress.done} of {len(shards)} shards are done"
        raise KeyboardInterrupt(f"{told}; run the same command to go on") from None
    if not failed:
        sweep_parts(shards, table)
    return _conclude(table, shards, failed, progress.reports, not_taken, console)


def tell_of_the_demo(model: str, console: Console) -> None:
    """Say what the shipped models know, where they are used on other pictures than the demo's own."""
    if model in CLIPS:
        say(
            console,
            f"note: the model {model} knows drawn 64x64 scenes only, and its prompts for other pictures mean nothing; "
            "for photographs take --model ViT-L-14 --pretrained openai, or leave --model out for ViT-H-14",
        )


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is to be done in an output folder."""

    table: PromptTable
    shards: list[Shard]
    """all"""
    pending: list[Shard]
    """to caption, and then to verify"""
    verified: VerifiedTable | None
    """None = without verification"""
    unverified: list[Shard]
    """that an earlier run captioned"""

    def begin(self, parts: int) -> list[Shard]:
        """Claim the folder.

        Returns:
            what to caption, one after the other: the pending shards, or parts of them.
        """
        from pipeline.stages.parts import split_shard

        earlier = self.table.claim()
        self.table.record(self.shards)
        if self.verified:
            self.verified.claim()
        units = [unit for shard in self.pending for unit in split_shard(shard, parts)]
        # Another run may be at work on this output: by starting elsewhere, two runs do each half of it.
        start = secrets.randbelow(len(units)) if earlier and units else 0
        return units[start:] + units[:start]


def _plans(job: CaptionJob) -> tuple[ActorPlan, ActorPlan]:
    """What the actors of captions and of verification get."""
    from pipeline.run import cluster

    cluster.connect(job.cluster)
    plan = cluster.plan_actors(job.cluster, job.device)
    return (plan, plan) if job.verification.verify is None else cluster.plan_verifiers(job.cluster, plan)


def _serially(job: CaptionJob, work: _Work, device: str, progress: JobProgress) -> dict[str, str]:
    """One stage after the other in this process: there is room for one model."""
    from pipeline.stages.learn import Captioner, run_serially
    from pipeline.stages.verify import verify_serially

    captioner = None
    if work.pending:
        progress.doing(f"loading {job.caption.model}")
        captioner = Captioner(job.caption, job.method, device)
    units = work.begin(job.cluster.parts)  # a model that does not load has claimed nothing
    failed: dict[str, str] = {}
    if captioner is not None:
        attempts, retry = job.cluster.attempts, job.retry_failed
        progress.watch(captioner)
        failed = run_serially(units, captioner, work.table, progress.report, attempts, progress.note, retry)
        progress.watch(None)
    del captioner
    if work.verified is None:
        return failed
    shards = [*work.unverified, *(shard for shard in work.pending if shard.url not in failed)]
    if shards:
        progress.doing(f"loading the generator {job.verification.verify}")
    told, attempts = progress.report_verified, job.cluster.attempts
    return failed | verify_serially(
        shards, work.verified, job.verification, device, told, progress.watch, attempts, progress.note
    )


def _on_ray(job: CaptionJob, work: _Work, plans: tuple[ActorPlan, ActorPlan], progress: JobProgress) -> dict[str, str]:
    from pipeline.run import cluster
    from pipeline.run.cluster import Stage

    units = work.begin(job.cluster.parts)
    progress.doing(f"starting {count(plans[0].actors, 'actor')} for {job.caption.model}")
    table, at_once = work.table, job.cluster.shards_at_once
    with cluster.seen_by_actors(table, [*units, *work.unverified]) as disk:
        starter = cluster.actor_starter(
            job.caption, job.method, plans[0], table.source, table.settings, job.retry_failed, at_once, disk
        )
        stages = [Stage("captions", starter, plans[0].actors, progress.report, asks=plans[0].asks, at_once=at_once)]
        if work.verified:
            stage = cluster.verify_stage(
                job.verification, plans[1], work.verified, work.unverified, progress.report_verified, disk
            )
            stages.append(stage)
        return cluster.run_on_ray(units, stages, job.cluster, progress.look, progress.note)


def connecting(settings: ClusterSettings) -> str:
    address = settings.address or os.environ.get("RAY_ADDRESS")
    return f"joining the Ray cluster at {address}" if address else "starting Ray on this machine"


def all_are(shards: int, what: str) -> str:
    """`all 4 shards are done`."""
    return f"the one shard is {what}" if shards == 1 else f"all {shards:,} shards are {what}"


def _conclude(
    table: PromptTable,
    shards: list[Shard],
    failed: dict[str, str],
    reports: list[ShardReport],
    not_taken: Counter[str],
    console: Console,
) -> int:
    """The mark of a job that is done, then what people want to know of it: nothing that is shown decides over the mark.

    Args:
        reports: of this run.
        not_taken: files that the input has beside the shards, by reason.
    """
    from pipeline.summary import nothing_captioned

    unmarked = None
    if not failed:
        told = {report.stem for report in reports}
        earlier = (report for s in shards if s.stem not in told and (report := table.finished(s)))
        try:
            if (nothing := nothing_captioned(itertools.chain(reports, earlier))) is not None:
                unmarked = f"failed: {nothing}"
            else:
                table.succeed(shards)
        except OutputError as error:
            unmarked = f"failed: {error}; run the same command to try again"
    for url, reason in failed.items():
        say(console, plain(f"failed: {url}: {reason}"), "red")
    show_first(table, [shard for shard in shards if shard.url not in failed], console)
    for line in _left_out(table, shards, reports, not_taken):
        say(console, plain(line))
    if failed:
        say(console, f"{len(failed)} of {count(len(shards), 'shard')} failed; run the same command to try them again")
        return 1
    if unmarked:
        say(console, plain(unmarked), "red")
        return 1
    say(console, plain(f"{count(len(shards), 'Parquet file')} in {table.url}"))
    return 0


def show_first(table: PromptTable, shards: list[Shard], console: Console) -> None:
    """Print the first prompts of the first shard that is done."""
    try:
        shown = next((shard for shard in shards if table.finished(shard)), None)
        if shown is not None:
            console.print(prompt_table(table.read(shown)))
    except (UserError, OSError) as error:  # it was written, and is not asked for but here
        say(console, plain(f"note: the first prompts cannot be shown: {error}"))


def _left_out(
    table: PromptTable, shards: list[Shard], reports: list[ShardReport], not_taken: Counter[str]
) -> Iterator[str]:
    """What is in no row, or has no picture, by reason: of this run's shards, and of earlier ones where they are few."""
    from pipeline.summary import without_picture

    told = {report.stem for report in reports}
    earlier = [shard for shard in shards if shard.stem not in told]
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        read = list(pool.map(table.finished, earlier if len(earlier) <= _EARLIER else ()))
    every = [*reports, *(report for report in read if report is not None)]
    reasons: Counter[str] = Counter()
    for report in every:
        reasons.update(report.left_out)
    for noun, counts in (("file", not_taken), ("member", reasons)):
        if counts.total():
            by_reason = ", ".join(f"{reason} {number:,}" for reason, number in counts.most_common())
            yield f"left out: {count(counts.total(), noun)} ({by_reason})"
    if (line := without_picture(every)) is not None:
        yield line


def main(prog: str | None = None) -> None:
    command.run(CaptionJob, __doc__, caption, prog)


if __name__ == "__main__":
    main()
