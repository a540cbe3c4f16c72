"""The common part of the commands that learn prompts into tables, from the input to the `_SUCCESS` file.

Settings are checked before any work. Units finished by an earlier run are skipped; the rest is learned, on Ray or in this
process, and verified if requested. Then the results are printed.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import secrets
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pez
from jobs import command
from jobs.options import RunOptions, expect_device_here
from pez.errors import UserError
from pipeline.errors import OutputError
from pipeline.settings import Bookkeeping, LearnSettings, VerifySettings
from pipeline.terminal import Activity, count, open_console, plain, prompt_table, say

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.failures import FailureLog
    from pipeline.progress import JobProgress
    from pipeline.rows import ShardReport
    from pipeline.run.resources import ActorPlan
    from pipeline.run.tasks import Task
    from pipeline.settings import ClusterSettings
    from pipeline.sources.base import Source, Unit
    from pipeline.sources.found import Found
    from pipeline.stages.verified_table import VerifiedTable
    from pipeline.table import PromptTable

_READS_AT_ONCE = 32
_EARLIER = 256  # reports of earlier runs that are read at most, to count what was left out


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableJob(RunOptions):
    """A job from units to tables of prompts."""

    settings: LearnSettings
    method: pez.PezSettings
    find: Callable[[Counter[str]], Found]
    """finds the units of the input; counts files left out, by reason"""
    output: str
    bookkeeping: Bookkeeping | None = None
    retry_failed: bool = False
    verification: VerifySettings = VerifySettings()
    noun: str = "image"
    """what prompts are learned for"""
    note: str | None = None
    """a line to print before any work"""
    wandb: str | None = None
    """project of Weights & Biases; None = none"""
    source: Source | None = None
    """how to read the units; None = according to the settings"""
    failed_before: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """input files that failed in an earlier stage, and why; the job does not count as done"""


def run(job: TableJob) -> int:
    """Run the job; returns its exit status."""
    console = open_console()
    with Activity(console, "loading PyTorch" if job.local else "loading PyTorch and Ray") as activity:
        with command.importing():
            if not job.local:
                import pipeline.run.ray  # noqa: F401
            from pez.models.load import check_models
            from pez.template import template_of
            from pipeline.description import describe, in_full
            from pipeline.failures import FailureLog
            from pipeline.progress import JobProgress
            from pipeline.run.hub import check_guides_reachable, check_reachable
            from pipeline.run.shared_disk import check_outside_package
            from pipeline.settings import cluster_address
            from pipeline.sources.choice import source_of
            from pipeline.stages.learned_columns import learned_columns
            from pipeline.stages.parts import sweep_parts
            from pipeline.stages.verification import check_verification, resolved, score_model, verified_table
            from pipeline.table import PromptTable

        check_models(job.settings, job.method.tokens, template_of(job.method))
        verifies = job.verification.verify is not None
        if verifies:
            job = dataclasses.replace(job, verification=resolved(job.verification))
            check_verification(job.verification, job.settings.model, job.settings.pretrained)
        device = verify_device = job.local_device() if job.local else ""
        check_outside_package([job.output], "output")
        not_taken: Counter[str] = Counter()
        found = job.find(not_taken)
        units, job = found.units, dataclasses.replace(job, settings=found.settings or job.settings)
        check_outside_package([unit.url for unit in units], "input")
        plans = None
        if not job.local:
            expect_device_here(job.device, job.cluster)
            activity.now(connecting(job.cluster))
            plans = _plans(job)
            device, verify_device = (plan.device for plan in plans)
        job = dataclasses.replace(job, settings=job.settings.on(device))
        activity.now(f"checking {job.output}")
        source = job.source or source_of(job.settings)
        described = describe(job.settings, job.method, device, source)
        full = in_full(job.settings, job.method, device, source)
        columns = [*source.columns, *learned_columns(job.settings, job.method)]
        table = PromptTable(job.output, described, job.bookkeeping, full, columns)
        table.check()
        done, pending = table.divide(units, job.retry_failed)
        units = [*done, *pending]  # with their stems in this folder
        verified = verified_table(table, job.verification, verify_device) if verifies else None
        work = _Work(table, found, units, pending, verified, verified.pending(done) if verified else [])
        if job.local or not cluster_address(job.cluster):  # other nodes may have weights that are not here
            if work.pending:
                check_guides_reachable(job.settings)
            if verifies and (work.pending or work.unverified):
                check_reachable(*score_model(job.verification, job.settings.model))
    for line in (*([job.note] if job.note else ()), *found.notes):
        say(console, plain(line))
    already_verified = len(done) - len(work.unverified) if verified else None
    progress = JobProgress(len(units), len(done), console, verified=already_verified, noun=job.noun)
    failed: dict[str, str] = {}
    failures = FailureLog(table)
    tracker = None
    if job.wandb and work.pending:
        from pipeline.tracking import Tracker

        tracker = Tracker(job.wandb, table, units, table.in_full)
        progress.listeners.append(tracker.report)
    status = 130  # unless it ends by itself
    try:
        if not work.pending and not work.unverified:
            say(console, f"nothing to do: {all_are(len(units), 'done and verified' if verifies else 'done')}")
        else:
            if work.pending:
                say(console, _computation(job.settings, device))
            with progress:
                if plans:
                    failed = _on_ray(job, work, plans, progress, failures)
                else:
                    failed = _serially(job, work, device, progress, failures)
        status = int(bool(failed))
    except KeyboardInterrupt:
        done_so_far = f"{progress.done} of {len(units)} shards are done"
        raise KeyboardInterrupt(f"{done_so_far}; re-run the command to resume") from None
    finally:
        if tracker is not None:
            tracker.finish(status)
    if not failed:
        sweep_parts(units, table)
    failures.conclude(failed, units)
    failed = {**job.failed_before, **failures.located(failed, units)}
    return _conclude(table, units, failed, progress.reports, not_taken, job.noun, console)


def _computation(settings: LearnSettings, device: str) -> str:
    """`ViT-H-14 on cuda: bf16, 1,024 searches side by side`."""
    return f"{settings.name} on {device}: {settings.precision}, {settings.lanes:,} searches side by side"


@dataclasses.dataclass(frozen=True)
class _Work:
    """The work to do in an output folder."""

    table: PromptTable
    found: Found
    units: list[Unit]
    """all units"""
    pending: list[Unit]
    """units to learn, and then to verify"""
    verified: VerifiedTable | None
    """None = without verification"""
    unverified: list[Unit]
    """learned by an earlier run, to verify"""

    def begin(self, parts: int) -> list[Task]:
        """Claim the folder.

        Returns:
            the tasks of learning, in order: the pending units, or parts of them.
        """
        from pipeline.run.tasks import tasks_of

        earlier = self.table.claim()
        self.table.record(self.units)
        self.found.record(self.table)
        if self.verified:
            self.verified.claim()
        tasks = tasks_of(self.pending, parts)
        # Another run may be working on this output. With different starting points, each does half of the work.
        start = secrets.randbelow(len(tasks)) if earlier and tasks else 0
        return tasks[start:] + tasks[:start]


def _plans(job: TableJob) -> tuple[ActorPlan, ActorPlan]:
    """The plans of the actors that learn and of those that verify."""
    from pipeline.run.ray import connect
    from pipeline.run.resources import learn_plan, verify_plan

    have = connect(job.cluster)
    plan = learn_plan(job.cluster, job.device, have)
    return (plan, plan) if job.verification.verify is None else verify_plan(job.cluster, plan, have)


def _serially(job: TableJob, work: _Work, device: str, progress: JobProgress, failures: FailureLog) -> dict[str, str]:
    """Run the stages one after another in this process, so that only one model is in memory at a time."""
    from pipeline.run.serial import run_serially
    from pipeline.stages.learn import Learner
    from pipeline.stages.learn_stage import LearnWorker

    learner = None
    if work.pending:
        progress.doing(f"loading {job.settings.name}")
        learner = Learner(job.settings, job.method, device, source=job.source)
    tasks = work.begin(job.cluster.parts)  # not before the model has loaded
    failed: dict[str, str] = {}
    if learner is not None:
        worker = LearnWorker(learner, work.table, job.retry_failed)
        progress.watch(worker)
        failed = run_serially(tasks, worker, progress.report, job.cluster.attempts, progress.note, failures.record)
        progress.watch(None)
        del worker
    del learner
    if work.verified is None:
        return failed
    units = [*work.unverified, *(unit for unit in work.pending if unit.url not in failed)]
    attempts = job.cluster.attempts
    return failed | verify_serially(units, work.verified, job.verification, device, attempts, progress, failures)


def verify_serially(
    units: list[Unit],
    table: VerifiedTable,
    settings: VerifySettings,
    device: str,
    attempts: int,
    progress: JobProgress,
    failures: FailureLog,
) -> dict[str, str]:
    """Verify units in this process. The output is claimed only after the generator has loaded.

    Returns:
        reasons by URL, for the units that failed.
    """
    from pipeline.description import model_of
    from pipeline.run.serial import run_serially
    from pipeline.run.tasks import tasks_of
    from pipeline.stages.verify import Verifier
    from pipeline.stages.verify_stage import VerifyWorker

    if not units:
        return {}
    progress.doing(f"loading the generator {settings.generator_name}")
    worker = VerifyWorker(Verifier(settings, model_of(table.prompts.settings), device), table)
    table.claim()
    progress.watch(worker)
    return run_serially(tasks_of(units), worker, progress.report_verified, attempts, progress.note, failures.record)


def _on_ray(
    job: TableJob,
    work: _Work,
    plans: tuple[ActorPlan, ActorPlan],
    progress: JobProgress,
    failures: FailureLog,
) -> dict[str, str]:
    from pipeline.metrics import JobMetrics
    from pipeline.run.ray import instruments, plan_stage, run_on_ray, seen_by_actors
    from pipeline.stages.learn_stage import LearnStage
    from pipeline.stages.verify_stage import VerifyStage

    tasks = work.begin(job.cluster.parts)
    units = {"learning": len(work.pending)}
    if work.verified:
        units["verification"] = len(work.pending) + len(work.unverified)
    metrics = JobMetrics(instruments, units)
    learned, verified = both(progress.report, metrics.report), both(progress.report_verified, metrics.report_verified)
    look = both(progress.look, metrics.look)
    progress.doing(f"starting {count(plans[0].actors, 'actor')} for {job.settings.name}")
    table, concurrent_units = work.table, job.cluster.shards_at_once
    with seen_by_actors(table, [*work.pending, *work.unverified]) as disk:
        learn = LearnStage(job.settings, job.method, table.source, table.settings, job.retry_failed, job.source)
        stages = [plan_stage(learn, plans[0], learned, concurrent_units=concurrent_units, disk=disk)]
        if work.verified:
            verify = VerifyStage.of(job.verification, work.verified)
            stages.append(plan_stage(verify, plans[1], verified, work.unverified, disk=disk))
        return run_on_ray(tasks, stages, job.cluster, look, progress.note, failures.record)


def both(first: Callable[[Any], None], second: Callable[[Any], None]) -> Callable[[Any], None]:
    """Call two functions with the same value."""

    def call(value: Any) -> None:
        first(value)
        second(value)

    return call


def connecting(settings: ClusterSettings) -> str:
    """`starting Ray on this machine`."""
    address = settings.address or os.environ.get("RAY_ADDRESS")
    return f"joining the Ray cluster at {address}" if address else "starting Ray on this machine"


def all_are(shards: int, what: str) -> str:
    """`all 4 shards are done`."""
    return f"the one shard is {what}" if shards == 1 else f"all {shards:,} shards are {what}"


def _conclude(
    table: PromptTable,
    shards: list[Unit],
    failed: dict[str, str],
    reports: list[ShardReport],
    not_taken: Counter[str],
    noun: str,
    console: Console,
) -> int:
    """Write `_SUCCESS` if the job is done, then print the results; errors of printing do not affect `_SUCCESS`.

    Args:
        reports: of this run.
        not_taken: number of files that are not input, by reason.
    """
    from pipeline.summary import nothing_learned

    unmarked = None
    if not failed:
        reported = {report.stem for report in reports}
        earlier = (report for s in shards if s.stem not in reported and (report := table.finished(s)))
        try:
            if (nothing := nothing_learned(itertools.chain(reports, earlier), noun)) is not None:
                unmarked = f"failed: {nothing}"
            else:
                table.succeed(shards)
        except OutputError as error:
            unmarked = f"failed: {error}; re-run the command to resume"
    for url, reason in failed.items():
        say(console, plain(f"failed: {url}: {reason}"), "red")
    show_first(table, [shard for shard in shards if shard.url not in failed], console)
    for line in _left_out(table, shards, reports, not_taken):
        say(console, plain(line))
    if failed:
        every = {shard.url for shard in shards} | failed.keys()
        say(console, f"{len(failed)} of {count(len(every), 'shard')} failed; re-run the command to retry")
        return 1
    if unmarked:
        say(console, plain(unmarked), "red")
        return 1
    say(console, plain(f"{count(len(shards), 'Parquet file')} in {table.url}"))
    if noun == "image":
        say(console, plain(f"to look at them: pez gallery {shlex.quote(table.url)}"))
    return 0


def show_first(table: PromptTable, shards: list[Unit], console: Console) -> None:
    """Print the first prompts of the first finished shard."""
    try:
        shown = next((shard for shard in shards if table.finished(shard)), None)
        if shown is not None:
            console.print(prompt_table(table.read(shown)))
    except (UserError, OSError) as error:  # it was written; it is only read here
        say(console, plain(f"note: the first prompts cannot be shown: {error}"))


def _left_out(
    table: PromptTable, shards: list[Unit], reports: list[ShardReport], not_taken: Counter[str]
) -> Iterator[str]:
    """Files and members in no row, and rows without an image, by reason; of this run, and of earlier ones if there are few."""
    from pipeline.summary import without_picture

    reported = {report.stem for report in reports}
    earlier = [shard for shard in shards if shard.stem not in reported]
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
