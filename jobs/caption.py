"""Learn a hard prompt for every image of a WebDataset and write them as Parquet.

    python -m jobs.caption --demo --output out
    python -m jobs.caption --input 's3://bucket/{00000..00999}.tar' --output s3://bucket/prompts --tokens 16
    python -m jobs.caption --demo --output out --verify demo        # paints each prompt and compares

The same command again goes on where the last one stopped; with --retry-failed it also redoes the rows that failed.
Exit status: 0 all shards are done, 1 some failed, 2 bad usage.
"""

import dataclasses
import secrets
import sys
from collections import Counter
from typing import Annotated

import torch
import tyro
from rich.console import Console

import pez
from jobs import command
from pipeline import cluster
from pipeline.caption import Captioner, check_settings, describe, run_serially
from pipeline.cluster import ActorPlan, Stage
from pipeline.demo_shards import demo_shards
from pipeline.folder import Bookkeeping
from pipeline.inputs import expand_shards
from pipeline.parts import split_shard, sweep_parts
from pipeline.progress import JobProgress, plain, prompt_table
from pipeline.settings import CaptionSettings, ClusterSettings, VerifySettings
from pipeline.shards import Shard
from pipeline.shared_disk import check_outside_package
from pipeline.summary import nothing_captioned
from pipeline.table import OutputError, PromptTable
from pipeline.verified_table import VerifiedTable
from pipeline.verify import check_verification, resolved, verified_table, verify_serially


@dataclasses.dataclass(frozen=True)
class CaptionJob:
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
    local: bool = False
    """no Ray: shard after shard in this process"""
    device: str | None = None
    """cpu or cuda; default = cuda where there is one"""
    caption: Annotated[CaptionSettings, tyro.conf.arg(name="")] = CaptionSettings()
    method: Annotated[pez.PezSettings, tyro.conf.arg(name="")] = pez.PezSettings()
    verification: Annotated[VerifySettings, tyro.conf.arg(name="")] = VerifySettings()
    cluster: Annotated[ClusterSettings, tyro.conf.arg(name="")] = ClusterSettings()


def caption(job: CaptionJob) -> int:
    """Run the job; returns its exit status."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    if job.demo:
        job = dataclasses.replace(job, caption=dataclasses.replace(job.caption, model="demo"))
    check_settings(job.caption, job.method)
    verifies = job.verification.verify is not None
    if verifies:
        job = dataclasses.replace(job, verification=resolved(job.verification))
        check_verification(job.verification, job.caption.model, job.caption.pretrained)
    inputs = [*job.input, *(demo_shards() if job.demo else ())]
    check_outside_package([job.output], "output")
    not_taken: Counter[str] = Counter()
    shards = expand_shards(inputs, job.output, not_taken)
    check_outside_package([shard.url for shard in shards], "input")
    plans = None if job.local else _plans(job)
    local = job.device or ("cuda" if torch.cuda.is_available() else "cpu")
    device, verify_device = (plan.device for plan in plans) if plans else (local, local)
    table = PromptTable(job.output, describe(job.caption, job.method, device), job.bookkeeping)
    table.check()
    done, pending = table.divide(shards, job.retry_failed)
    shards = [*done, *pending]  # with the stems that they have in this folder
    verified = verified_table(table, job.verification, verify_device) if verifies else None
    work = _Work(table, shards, pending, verified, verified.pending(done) if verified else [])
    already_verified = len(done) - len(work.unverified) if verified else None
    progress = JobProgress(len(shards), len(done), console, verified=already_verified)
    try:
        with progress:
            if not work.pending and not work.unverified:
                failed = {}
            elif plans is None:
                failed = _serially(job, work, device, progress)
            else:
                failed = _on_ray(job, work, plans, progress)
    except KeyboardInterrupt:
        told = f"{progress.done} of {len(shards)} shards are done"
        raise KeyboardInterrupt(f"{told}; run the same command to go on") from None
    if not failed:
        sweep_parts(shards, table)
    return _conclude(job, table, shards, failed, console)


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
    cluster.connect(job.cluster)
    plan = cluster.plan_actors(job.cluster, job.device)
    return (plan, plan) if job.verification.verify is None else cluster.plan_verifiers(job.cluster, plan)


def _serially(job: CaptionJob, work: _Work, device: str, progress: JobProgress) -> dict[str, str]:
    """One stage after the other in this process: there is room for one model."""
    captioner = Captioner(job.caption, job.method, device) if work.pending else None
    units = work.begin(job.cluster.parts)  # a model that does not load has claimed nothing
    failed: dict[str, str] = {}
    if captioner is not None:
        attempts, retry = job.cluster.attempts, job.retry_failed
        failed = run_serially(units, captioner, work.table, progress.report, attempts, progress.note, retry)
    del captioner
    if work.verified is None:
        return failed
    shards = [*work.unverified, *(shard for shard in work.pending if shard.url not in failed)]
    return failed | verify_serially(shards, work.verified, job.verification, device, progress.report_verified)


def _on_ray(job: CaptionJob, work: _Work, plans: tuple[ActorPlan, ActorPlan], progress: JobProgress) -> dict[str, str]:
    units = work.begin(job.cluster.parts)
    table, at_once = work.table, job.cluster.shards_at_once
    with cluster.seen_by_actors(table, [*units, *work.unverified]) as disk:
        starter = cluster.actor_starter(
            job.caption, job.method, plans[0], table.url, table.settings, job.retry_failed, at_once, disk
        )
        stages = [Stage("captions", starter, plans[0].actors, progress.report, asks=plans[0].asks, at_once=at_once)]
        if work.verified:
            stage = cluster.verify_stage(
                job.verification, plans[1], work.verified, work.unverified, progress.report_verified, disk
            )
            stages.append(stage)
        return cluster.run_on_ray(units, stages, job.cluster, progress.look, progress.note)


def _conclude(
    job: CaptionJob, table: PromptTable, shards: list[Shard], failed: dict[str, str], console: Console
) -> int:
    for url, reason in failed.items():
        line = plain(f"failed: {url}: {reason}")
        console.print(line, style="red", highlight=False, soft_wrap=True, markup=False)
    shown = next((s for s in shards if s.url not in failed and table.finished(s)), None)
    if shown is not None:
        console.print(prompt_table(table.read(shown)))
    if failed:
        console.print(f"{len(failed)} of {len(shards)} shards failed; run the same command to try them again")
        return 1
    nothing = nothing_captioned(report for shard in shards if (report := table.finished(shard)))
    if nothing is not None:
        console.print(plain(f"failed: {nothing}"), style="red", highlight=False, soft_wrap=True, markup=False)
        return 1
    try:
        table.succeed(shards)
    except OutputError as error:
        console.print(
            f"failed: {error}; run the same command to try again", highlight=False, soft_wrap=True, markup=False
        )
        return 1
    console.print(f"{len(shards)} Parquet files in {table.url}", highlight=False, soft_wrap=True, markup=False)
    return 0


if __name__ == "__main__":
    command.run(CaptionJob, __doc__, caption)
