"""Export an output of jobs.caption in the format of a trainer.

    python -m jobs.export out --format webdataset                        # out-webdataset/*.tar for open_clip
    python -m jobs.export out --format sidecar --to train                # images with a .txt beside each: kohya, A1111
    python -m jobs.export out --format imagefolder --mix caption:0.5     # for diffusers
    python -m jobs.export out --format datasets --min-similarity 0.3     # for datasets, with a card

The images are read again from the input. Re-run the command to resume.
Exit status: 0 = all shards are exported, 1 = some failed, 2 = bad usage.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from jobs import command
from jobs.arguments import POSITIONAL, Group
from jobs.driver import all_are, connecting
from jobs.options import expect_output, refuse_ignored, refuse_without
from jobs.verify import with_sources
from pez.errors import UserError
from pipeline.exports.settings import ExportSettings
from pipeline.settings import ClusterSettings
from pipeline.terminal import Activity, count, open_console, plain, say

if TYPE_CHECKING:
    from pipeline.export_progress import ExportJobProgress
    from pipeline.exports.folder import ExportFolder, ExportReport
    from pipeline.failures import FailureLog
    from pipeline.run.resources import ActorPlan
    from pipeline.sources.base import Unit
    from pipeline.table import PromptTable


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportJob:
    """Options of `pez export`."""

    output: Annotated[str, POSITIONAL]
    """output folder of jobs.caption"""
    to: str | None = None
    """folder for the export, local or in a store; default = the output with -FORMAT at its end"""
    input: tuple[str, ...] = ()
    """fresh URLs of its tars or tables, as for jobs.caption, if their signatures have expired"""
    export: ExportSettings
    local: Annotated[bool, Group("cluster")] = False
    """run without Ray: one shard after another, in this process"""
    cluster: Annotated[ClusterSettings, Group("cluster")] = ClusterSettings()

    def check(self, given: frozenset[str]) -> None:
        """Refuse options that would be ignored."""
        refuse_ignored(given)
        of_gpus = {"gpus_per_actor", "verify_actors", "gpus_per_verifier", "shards_at_once", "parts"}
        refuse_without("", given, of_gpus, "on an export")
        expect_output(self.folder, "--to")

    @property
    def folder(self) -> str:
        """The URL of the export."""
        return self.to if self.to is not None else f"{self.output.rstrip('/')}-{self.export.format}"


def export(job: ExportJob) -> int:
    """Run the job; returns its exit status."""
    console = open_console()
    with Activity(console, "reading the output" if job.local else "loading Ray") as activity:
        with command.importing():
            if not job.local:
                import pipeline.run.ray  # noqa: F401
            from pipeline.export_progress import ExportJobProgress
            from pipeline.exports.card import write_summary
            from pipeline.exports.folder import ExportFolder
            from pipeline.failures import FailureLog
            from pipeline.run.shared_disk import check_outside_package
            from pipeline.sources.image_inputs import fresh_units
            from pipeline.table import PromptTable

        check_outside_package([job.output], "output")
        check_outside_package([job.folder], "to")
        table = PromptTable.written(job.output)
        shards = sorted(table.shards(), key=lambda shard: shard.stem)
        _check(table, shards, job.export)
        if job.input:
            shards = with_sources(shards, fresh_units(job.input, table.settings))
        folder = ExportFolder(job.folder, table, job.export)
        if folder.url == table.url:
            raise UserError(f"--to is {job.to}, the output itself; expected another folder")
        if job.export.link and not folder.local:
            raise UserError(f"--link needs a local --to; found {folder.url}")
        folder.check()
        earlier, pending = folder.divide(shards)
        plan = None
        if not job.local and pending:
            activity.now(connecting(job.cluster))
            plan = _plan(job)
        folder.claim()
    progress = ExportJobProgress(len(shards), earlier, console)
    failures = FailureLog(folder)
    failed: dict[str, str] = {}
    try:
        if not pending:
            say(console, f"nothing to do: {all_are(len(shards), 'exported')}")
        else:
            with progress:
                failed = _run(job, folder, pending, plan, progress, failures, one_tree=_are_of_one_folder(shards))
    except KeyboardInterrupt:
        so_far = f"{len(progress.exported)} of {count(len(shards), 'shard')} exported"
        raise KeyboardInterrupt(f"{so_far}; re-run the command to resume") from None
    failures.conclude(failed, pending)
    write_summary(folder, progress.exported, table.read_json("_run.json") or {})
    if not failed:
        folder.succeed()
    for url, reason in failures.located(failed, pending).items():
        say(console, plain(f"failed: {url}: {reason}"), "red")
    for line in _summary(progress.exported):
        say(console, plain(line))
    if failed:
        say(console, f"{len(failed)} of {count(len(shards), 'shard')} failed; re-run the command to retry them")
        return 1
    if not any(report.rows for report in progress.exported):
        say(console, "failed: not one row was exported", "red")
        return 1
    say(console, plain(f"{count(sum(report.rows for report in progress.exported), 'row')} in {folder.url}"))
    return 0


def _check(table: PromptTable, shards: Sequence[Unit], settings: ExportSettings) -> None:
    """Refuse an output that cannot be exported with these settings, before any work."""
    from pipeline.exports.rows import text_columns
    from pipeline.stages.export import source_for

    if not shards:
        raise UserError(f"no finished shard in {table.url}; run pez caption first")
    source_for(table, settings)
    settings.expect_columns(text_columns(table.schema(shards[0])))


def _are_of_one_folder(shards: Sequence[Unit]) -> bool:
    """Whether all units are of one folder of images; their names are those of the folder with a number."""
    return len({shard.url.rpartition("#")[0] for shard in shards}) == 1 and "#" in shards[0].url


def _plan(job: ExportJob) -> ActorPlan:
    from pipeline.run.ray import connect
    from pipeline.run.resources import export_plan

    return export_plan(job.cluster, connect(job.cluster))


def _run(
    job: ExportJob,
    folder: ExportFolder,
    pending: list[Unit],
    plan: ActorPlan | None,
    progress: ExportJobProgress,
    failures: FailureLog,
    one_tree: bool,
) -> dict[str, str]:
    """Export units here or on Ray; returns reasons by URL, for those that failed."""
    from pipeline.run.tasks import tasks_of
    from pipeline.stages.export import ExportStage, ExportWorker

    if plan is None:
        from pipeline.run.serial import run_serially

        worker = ExportWorker(folder, one_tree)
        progress.watch(worker)
        attempts = job.cluster.attempts
        return run_serially(
            tasks_of(pending), worker, progress.report_exported, attempts, progress.note, failures.record
        )
    from pipeline.run.ray import plan_stage, run_on_ray, seen_by_actors

    progress.doing(f"starting {count(plan.actors, 'actor')}")
    prompts = folder.prompts
    with seen_by_actors(folder, pending) as disk:
        stage = ExportStage(job.export, prompts.source, prompts.settings, folder.source, one_tree)
        planned = plan_stage(stage, plan, progress.report_exported, disk=disk)
        return run_on_ray(tasks_of(pending), [planned], job.cluster, progress.look, progress.note, failures.record)


def _summary(reports: Sequence[ExportReport]) -> list[str]:
    """What was left out, by reason."""
    left_out: Counter[str] = Counter()
    for report in reports:
        left_out.update(report.left_out)
    return [f"left out: {reason}: {number:,}" for reason, number in left_out.most_common()]


def main(prog: str | None = None) -> None:
    command.run(ExportJob, __doc__, export, prog)


if __name__ == "__main__":
    main()
