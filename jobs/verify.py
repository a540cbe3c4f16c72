"""Generate images from the prompts of an existing output and compare them with the originals.

    python -m jobs.verify out --verify demo
    python -m jobs.verify s3://bucket/prompts --verify stabilityai/stable-diffusion-2-1 --keep-images

The results are the same as those of `jobs.caption --verify`. The original images are read again from their shards. Re-run the
command to resume. Exit status: 0 = all shards are verified, 1 = some failed, 2 = bad usage.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from jobs import command
from jobs.arguments import POSITIONAL
from jobs.driver import all_are, both, connecting, show_first, verify_serially
from jobs.options import RunOptions, VerifyOptions, expect_device, expect_device_here, expect_generator, refuse_ignored
from pez.errors import UserError
from pipeline.sources.base import Unit
from pipeline.terminal import Activity, count, open_console, plain, say

if TYPE_CHECKING:
    from pipeline.failures import FailureLog
    from pipeline.progress import JobProgress
    from pipeline.run.resources import ActorPlan
    from pipeline.stages.verified_table import VerifiedTable


@dataclasses.dataclass(frozen=True)
class VerifyJob(VerifyOptions, RunOptions):
    """Options of `pez verify`."""

    output: Annotated[str, POSITIONAL] = ""
    """output folder of jobs.caption"""
    input: tuple[str, ...] = ()
    """fresh URLs of its tars, as for jobs.caption, if their signatures have expired"""

    def __post_init__(self) -> None:
        """The output may also follow the generator, as in `--verify demo out`."""
        *generators, last = self.verification.generators or ("",)
        if not self.output and generators:
            object.__setattr__(self, "output", last)
            object.__setattr__(self, "verification", dataclasses.replace(self.verification, verify=tuple(generators)))

    def check(self, given: frozenset[str]) -> None:
        """Refuse options that would be ignored, and everything that can be checked without loading anything."""
        if not self.output:
            raise UserError(
                "no output given; expected the folder of an earlier job, as in pez verify OUT --verify demo"
            )
        refuse_ignored(given)
        expect_device(self.device, on_ray=not self.local)


def verify(job: VerifyJob) -> int:
    """Run the job; returns its exit status."""
    expect_generator(job.verification)
    console = open_console()
    with Activity(console, "loading PyTorch" if job.local else "loading PyTorch and Ray") as activity:
        with command.importing():
            if not job.local:
                import pipeline.run.ray  # noqa: F401
            from pipeline.description import model_of
            from pipeline.failures import FailureLog
            from pipeline.progress import JobProgress
            from pipeline.run.hub import check_reachable
            from pipeline.run.shared_disk import check_outside_package
            from pipeline.settings import cluster_address
            from pipeline.sources.choice import image_source_of
            from pipeline.sources.image_inputs import fresh_units
            from pipeline.stages.verification import check_verification, resolved, score_model, verified_table
            from pipeline.table import PromptTable

        check_outside_package([job.output], "output")
        table = PromptTable.written(job.output)
        image_source_of(table.settings)
        job = dataclasses.replace(job, verification=resolved(job.verification))
        guide = model_of(table.settings)
        check_verification(job.verification, guide.model, guide.pretrained)
        shards = table.shards()
        if not shards:
            raise UserError(f"no finished shard in {table.url}; run pez caption first")
        if job.input:
            shards = with_sources(shards, fresh_units(job.input, table.settings))
        plan = None
        if job.local:
            device = job.local_device()
        else:
            expect_device_here(job.device, job.cluster)
            activity.now(connecting(job.cluster))
            plan = _plan(job)
            device = plan.device
        verified = verified_table(table, job.verification, device)
        pending = verified.pending(shards)
        if pending and (job.local or not cluster_address(job.cluster)):  # other nodes may have what is missing here
            check_reachable(*score_model(job.verification, guide.model))
    progress = JobProgress(len(shards), None, console, verified=len(shards) - len(pending))
    failed: dict[str, str] = {}
    failures = FailureLog(table)
    try:
        if not pending:
            say(console, f"nothing to do: {all_are(len(shards), 'verified')}")
        else:
            with progress:
                if plan is None:
                    attempts = job.cluster.attempts
                    failed = verify_serially(pending, verified, job.verification, device, attempts, progress, failures)
                else:
                    failed = _on_ray(job, verified, pending, plan, progress, failures)
    except KeyboardInterrupt:
        so_far = f"{progress.verified} of {count(len(shards), 'shard')} verified"
        raise KeyboardInterrupt(f"{so_far}; re-run the command to resume") from None
    failures.conclude(failed, shards)
    for url, reason in failures.located(failed, shards).items():
        say(console, plain(f"failed: {url}: {reason}"), "red")
    show_first(table, [shard for shard in shards if shard.url not in failed], console)
    if failed:
        say(console, f"{len(failed)} of {count(len(shards), 'shard')} failed; re-run the command to retry them")
        return 1
    say(console, plain(f"{count(len(shards), 'verified Parquet file')} in {table.url}"))
    return 0


def _plan(job: VerifyJob) -> ActorPlan:
    """What the actors get."""
    from pipeline.run.ray import connect
    from pipeline.run.resources import learn_plan, verify_plan

    have = connect(job.cluster)
    return verify_plan(job.cluster, learn_plan(job.cluster, job.device, have), have)[1]


def _on_ray(
    job: VerifyJob,
    verified: VerifiedTable,
    pending: list[Unit],
    plan: ActorPlan,
    progress: JobProgress,
    failures: FailureLog,
) -> dict[str, str]:
    from pipeline.metrics import JobMetrics
    from pipeline.run.ray import instruments, plan_stage, run_on_ray, seen_by_actors
    from pipeline.run.tasks import tasks_of
    from pipeline.stages.verify_stage import VerifyStage

    verified.claim()
    progress.doing(f"starting {count(plan.actors, 'actor')} for {job.verification.generator_name}")
    metrics = JobMetrics(instruments, {"verification": len(pending)})
    report = both(progress.report_verified, metrics.report_verified)
    with seen_by_actors(verified.prompts, pending) as disk:
        stage = plan_stage(VerifyStage.of(job.verification, verified), plan, report, disk=disk)
        return run_on_ray(tasks_of(pending), [stage], job.cluster, progress.look, progress.note, failures.record)


def with_sources(shards: Sequence[Unit], given: Sequence[Unit]) -> list[Unit]:
    """The shards of the output, opened at the given URLs where there are any.

    Raises:
        UserError: none of the given shards is in the output.
    """
    sources = {shard.url: shard.source for shard in given}
    if not any(shard.url in sources for shard in shards):
        raise UserError(
            f"--input has {given[0].url}, which this output does not have; expected its tars, like {shards[0].url}"
        )
    return [dataclasses.replace(shard, source=sources.get(shard.url, shard.source)) for shard in shards]


def main(prog: str | None = None) -> None:
    command.run(VerifyJob, __doc__, verify, prog)


if __name__ == "__main__":
    main()
