"""One prompt for each group of images, for `jobs.caption --group-by`: two stages.

The first embeds every input file and writes sums of features by group. The second adds the sums of each group and learns its
prompt; it is the driver of single images with another source. It starts only when all input files are embedded, so that no
group lacks images of a file that failed, unless --incomplete-groups asks for that.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from jobs import command, driver
from jobs.options import expect_device_here
from pez.errors import UserError
from pipeline.terminal import Activity, count, open_console, plain, say

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.failures import FailureLog
    from pipeline.member_table import EmbedReport, MemberTable
    from pipeline.progress import JobProgress
    from pipeline.run.resources import ActorPlan
    from pipeline.settings import GroupSettings
    from pipeline.sources.base import Unit
    from pipeline.sources.found import Found
    from pipeline.sources.grouping import GroupedSource
    from pipeline.sources.groups import GroupPlan


@dataclasses.dataclass(frozen=True)
class _Embedding:
    """The first stage of a job."""

    job: driver.TableJob
    source: GroupedSource
    members: MemberTable
    found: Found
    units: list[Unit]
    """with their stems in the output"""
    device: str
    actors: ActorPlan | None
    """None = without Ray"""


def run(job: driver.TableJob, groups: GroupSettings) -> int:
    """Run both stages of the job; returns its exit status."""
    from pipeline.sources.groups import GroupPlan, GroupSource

    console = open_console()
    not_taken: Counter[str] = Counter()
    with Activity(console, "loading PyTorch" if job.local else "loading PyTorch and Ray") as activity:
        embedding = _prepared(job, groups, not_taken, activity)
        table = embedding.members.prompts
        plan = GroupPlan.read(table, table.fingerprint)
        _expect_same_input(embedding, plan)
        learned = plan is not None and not table.divide(plan.units())[1]
    if not learned:
        failed, reports = _embed(embedding, plan, console)
        for line in _summary(list(reports.values())):
            say(console, plain(line))
        if failed and not groups.incomplete_groups:
            say(console, _none_learned(failed, embedding), "red")
            return 1
        plan = plan or _plan(embedding, reports, failed)
        if plan is None:
            say(console, plain(f"failed: no image has a group (--group-by {embedding.source.by})"), "red")
            return 1
    assert plan is not None, "of this run or of an earlier one"
    source = GroupSource(table.source, table.fingerprint, embedding.source)
    status = driver.run(
        dataclasses.replace(
            job,
            settings=embedding.found.settings or job.settings,
            find=lambda left_out: _units_of(plan, left_out, not_taken),
            source=source,
            noun="group",
            note=None,  # printed by the first stage
            failed_before=plan.without,
        )
    )
    if status == 0:
        embedding.members.remove_sums()
    return status


def _prepared(job: driver.TableJob, groups: GroupSettings, not_taken: Counter[str], activity: Activity) -> _Embedding:
    """Check everything before any work.

    Raises:
        UserError: the input has no such groups, or the output belongs to another job.
    """
    with command.importing():
        if not job.local:
            import pipeline.run.ray  # noqa: F401
        from pez.models.load import check_models
        from pez.template import template_of
        from pipeline.description import describe, in_full
        from pipeline.member_table import MemberTable
        from pipeline.run.shared_disk import check_outside_package
        from pipeline.sources.choice import source_of
        from pipeline.sources.group_by import GroupBy
        from pipeline.sources.grouping import grouped
        from pipeline.sources.table_columns import expect_group_column
        from pipeline.table import PromptTable

    assert groups.group_by is not None, "the job has groups"
    by = GroupBy.parse(groups.group_by)
    check_models(job.settings, job.method.tokens, template_of(job.method))
    device = job.local_device() if job.local else ""
    check_outside_package([job.output], "output")
    found = job.find(not_taken)
    check_outside_package([unit.url for unit in found.units], "input")
    settings = found.settings or job.settings
    source = grouped(source_of(settings), by, groups.groups_per_unit)
    if by.kind == "column":
        expect_group_column(found.units[0], by.argument)
    actors = None
    if not job.local:
        expect_device_here(job.device, job.cluster)
        activity.now(driver.connecting(job.cluster))
        actors = _actors(job)
        device = actors.device
    settings = settings.on(device)
    activity.now(f"checking {job.output}")
    described = describe(settings, job.method, device, source)
    full = in_full(settings, job.method, device, source)
    table = PromptTable(job.output, described, job.bookkeeping, full, source.columns)
    table.check()
    done, left = table.divide(found.units)
    units = [*done, *left]
    job = dataclasses.replace(job, settings=settings)
    return _Embedding(job, source, MemberTable(table), found, units, device, actors)


def _actors(job: driver.TableJob) -> ActorPlan:
    from pipeline.run.ray import connect
    from pipeline.run.resources import learn_plan

    return learn_plan(job.cluster, job.device, connect(job.cluster))


def _expect_same_input(embedding: _Embedding, plan: GroupPlan | None) -> None:
    """Raise UserError if the groups of an earlier run have images of other input files, since prompts depend on all of them."""
    urls = {unit.url for unit in embedding.units}
    url = embedding.members.prompts.url
    if plan is not None:
        before = {shard for shard, _, _ in plan.shards} | plan.without.keys()
        if before != urls:
            different = sorted(before ^ urls)[0]
            what = "is not in the input now" if different in before else "was not in the input then"
            raise UserError(
                f"{url} holds prompts of groups of other images: {different} {what}; choose another --output"
            )
    elif foreign := embedding.members.foreign(embedding.units):
        raise UserError(
            f"{url} has images that are not in the input now, of {foreign[0]}; use the same --input, or choose another --output"
        )


def _embed(
    embedding: _Embedding, plan: GroupPlan | None, console: Console
) -> tuple[dict[str, str], dict[str, EmbedReport]]:
    """Run the first stage.

    Returns:
        reasons by URL, for the units that failed; reports by URL, for the others.
    """
    from pipeline.failures import FailureLog
    from pipeline.progress import JobProgress

    members, job = embedding.members, embedding.job
    units = [unit for unit in embedding.units if plan is None or unit.url not in plan.without]
    reports = members.reports(units)
    pending = [unit for unit in units if unit.url not in reports]
    if not pending:
        return {}, reports
    for line in (*([job.note] if job.note else ()), *embedding.found.notes):
        say(console, plain(line))
    progress = JobProgress(len(units), len(reports), console, embeds=True)
    failures = FailureLog(members.prompts)
    try:
        with progress:
            work = _serially if embedding.actors is None else _on_ray
            failed = work(embedding, pending, progress, failures)
    except KeyboardInterrupt:
        done_so_far = f"{progress.done} of {count(len(units), 'shard')} embedded"
        raise KeyboardInterrupt(f"{done_so_far}; re-run the command to resume") from None
    failures.conclude(failed, units)
    for url, reason in failures.located(failed, units).items():
        say(console, plain(f"failed: {url}: {reason}"), "red")
    return failed, members.reports(units)


def _begin(embedding: _Embedding) -> None:
    """Claim the output, and record the names of the units."""
    table = embedding.members.prompts
    table.claim()
    table.record(embedding.units)
    embedding.found.record(table)


def _serially(
    embedding: _Embedding, pending: list[Unit], progress: JobProgress, failures: FailureLog
) -> dict[str, str]:
    from pipeline.run.hub import check_guides_reachable
    from pipeline.run.serial import run_serially
    from pipeline.run.tasks import tasks_of
    from pipeline.stages.embed import Embedder
    from pipeline.stages.embed_stage import EmbedWorker

    job = embedding.job
    check_guides_reachable(job.settings)
    progress.doing(f"loading {job.settings.name}")
    worker = EmbedWorker(Embedder(job.settings, embedding.source, embedding.device), embedding.members)
    _begin(embedding)  # not before the model has loaded
    progress.watch(worker)
    attempts = job.cluster.attempts
    failed = run_serially(tasks_of(pending), worker, progress.report_embedded, attempts, progress.note, failures.record)
    progress.watch(None)
    return failed


def _on_ray(embedding: _Embedding, pending: list[Unit], progress: JobProgress, failures: FailureLog) -> dict[str, str]:
    from pipeline.run.hub import check_guides_reachable
    from pipeline.run.ray import plan_stage, run_on_ray, seen_by_actors
    from pipeline.run.tasks import tasks_of
    from pipeline.settings import cluster_address
    from pipeline.stages.embed_stage import EmbedStage

    job, table, plan = embedding.job, embedding.members.prompts, embedding.actors
    assert plan is not None, "on Ray"
    if not cluster_address(job.cluster):  # other nodes may have weights that are not here
        check_guides_reachable(job.settings)
    _begin(embedding)
    progress.doing(f"starting {count(plan.actors, 'actor')} for {job.settings.name}")
    stage = EmbedStage(job.settings, embedding.source, table.source, table.settings)
    with seen_by_actors(table, pending) as disk:
        stages = [plan_stage(stage, plan, progress.report_embedded, disk=disk)]
        return run_on_ray(tasks_of(pending), stages, job.cluster, progress.look, progress.note, failures.record)


def _plan(embedding: _Embedding, reports: dict[str, EmbedReport], failed: dict[str, str]) -> GroupPlan | None:
    """Divide the groups into units, and record that; None if there is no group."""
    from pipeline.member_table import merged
    from pipeline.sources.group_sums import estimated
    from pipeline.sources.groups import GroupPlan, write_plan

    table = embedding.members.prompts
    groups = estimated(merged(report.smallest for report in reports.values()))
    if not groups:
        return None
    partitions = -(-groups // embedding.source.groups_per_unit)
    shards = sorted((report.shard, report.stem, report.runs) for report in reports.values())
    kept = "its images are in no group, as --incomplete-groups allows; choose another --output for groups with them"
    without = {url: f"{kept}: {reason}" for url, reason in sorted(failed.items())}
    plan = GroupPlan(table.fingerprint, groups, partitions, shards, without)
    write_plan(plan, table)
    return plan


def _units_of(plan: GroupPlan, left_out: Counter[str], not_taken: Counter[str]) -> Found:
    from pipeline.sources.found import Found

    left_out.update(not_taken)
    return Found(plan.units())


def _none_learned(failed: dict[str, str], embedding: _Embedding) -> str:
    return (
        f"{len(failed)} of {count(len(embedding.units), 'shard')} failed, so groups may lack images and none was learned; "
        "re-run the command to retry, or add --incomplete-groups to learn them without these images"
    )


def _summary(reports: Sequence[EmbedReport]) -> Iterator[str]:
    """How many images are in groups, and why the others are not."""
    keys, ok = sum(report.keys for report in reports), sum(report.ok for report in reports)
    failed: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for report in reports:
        failed.update(report.failed)
        left_out.update(report.left_out)
    line = f"{ok:,} of {count(keys, 'image')} {'is' if ok == 1 else 'are'} in groups"
    if failed:
        by_status = ", ".join(f"{status} {number:,}" for status, number in failed.most_common())
        first = next(failure for report in reports for failure in report.failures)
        line += f"; not in a group: {by_status}; the first, {first['key']}: {first['reason']}"
    yield line
    if left_out:
        by_reason = ", ".join(f"{reason} {number:,}" for reason, number in left_out.most_common())
        yield f"left out: {count(left_out.total(), 'member')} ({by_reason})"
