"""Paint the prompts of an existing output with a text-to-image model and compare the pictures with the originals.

    python -m jobs.verify out --verify demo
    python -m jobs.verify s3://bucket/prompts --verify stabilityai/stable-diffusion-2-1 --keep-images

The numbers are those of `jobs.caption --verify`. The images are read again from their shards. Re-run the command
to resume. Exit status: 0 all shards are verified, 1 some failed, 2 bad usage.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from jobs import command
from jobs.arguments import POSITIONAL
from jobs.driver import all_are, connecting, show_first
from jobs.options import RunOptions, VerifyOptions, expect_device, expect_device_here, expect_generator, refuse_ignored
from pez.errors import UserError
from pipeline.sources.base import Unit
from pipeline.terminal import Activity, count, open_console, plain, say


@dataclasses.dataclass(frozen=True)
class VerifyJob(VerifyOptions, RunOptions):
    """Options of the job."""

    output: Annotated[str, POSITIONAL]
    """folder that jobs.caption wrote"""
    input: tuple[str, ...] = ()
    """fresh addresses of its tars, written as for jobs.caption, where a signature has run out"""

    def check(self, given: frozenset[str]) -> None:
        """Refuse what could only be ignored, and what can be told without loading anything."""
        refuse_ignored(given)
        expect_device(self.device, on_ray=not self.local)


def verify(job: VerifyJob) -> int:
    """Run the job; returns its exit status."""
    expect_generator(job.verification)
    console = open_console()
    with Activity(console, "loading PyTorch" if job.local else "loading PyTorch and Ray") as activity:
        with command.importing():
            if not job.local:
                import pipeline.run.cluster  # noqa: F401
            from pipeline.description import model_of
            from pipeline.failures import FailureLog
            from pipeline.progress import JobProgress
            from pipeline.run.hub import check_reachable
            from pipeline.run.shared_disk import check_outside_package
            from pipeline.settings import cluster_address
            from pipeline.sources.choice import image_source_of
            from pipeline.sources.image_inputs import fresh_units
            from pipeline.stages.verify import (
                check_verification,
                resolved,
                score_model,
                verified_table,
                verify_serially,
            )
            from pipeline.stages.verify_stage import VerifyStage
            from pipeline.table import PromptTable

        check_outside_package([job.output], "output")
        table = PromptTable.written(job.output)
        image_source_of(table.settings)
        job = dataclasses.replace(job, verification=resolved(job.verification))
        guide = model_of(table.settings)
        check_verification(job.verification, guide.model, guide.pretrained)
        shards = table.shards()
        if not shards:
            raise UserError(f"no finished shard in {table.url}; run jobs.caption first")
        if job.input:
            shards = with_sources(shards, fresh_units(job.input, table.settings))
        plan = None
        if job.local:
            device = job.local_device()
        else:
            expect_device_here(job.device, job.cluster)
            activity.now(connecting(job.cluster))
            from pipeline.run import cluster

            cluster.connect(job.cluster)
            plan = cluster.plan_verifiers(job.cluster, cluster.plan_actors(job.cluster, job.device))[1]
            device = plan.device
        verified = verified_table(table, job.verification, device)
        pending = verified.pending(shards)
        if pending and (job.local or not cluster_address(job.cluster)):  # nodes elsewhere may have what is not here
            check_reachable(*score_model(job.verification, guide.model))
    progress = JobProgress(len(shards), None, console, verified=len(shards) - len(pending))
    failed: dict[str, str] = {}
    failures = FailureLog(table)
    try:
        if not pending:
            say(console, f"nothing to do: {all_are(len(shards), 'verified')}")
        else:
            if plan is not None:
                verified.claim()
            with progress:
                if plan is None:
                    progress.doing(f"loading the generator {job.verification.verify}")
                    on_report = progress.report_verified
                    failed = verify_serially(
                        pending,
                        verified,
                        job.verification,
                        device,
                        on_report,
                        progress.watch,
                        job.cluster.attempts,
                        progress.note,
                        failures.record,
                    )
                else:
                    actors = count(plan.actors, "actor")
                    progress.doing(f"starting {actors} for {job.verification.verify}")
                    on_report = progress.report_verified
                    with cluster.seen_by_actors(table, pending) as disk:
                        stage = VerifyStage.of(job.verification, verified)
                        pool = cluster.pool_of(stage, plan, on_report, disk=disk)
                        failed = cluster.run_on_ray(
                            pending, [pool], job.cluster, progress.look, progress.note, failures.record
                        )
    except KeyboardInterrupt:
        told_so_far = f"{progress.verified} of {count(len(shards), 'shard')} verified"
        raise KeyboardInterrupt(f"{told_so_far}; re-run the command to resume") from None
    failures.conclude(failed, shards)
    for url, reason in failures.located(failed, shards).items():
        say(console, plain(f"failed: {url}: {reason}"), "red")
    show_first(table, [shard for shard in shards if shard.url not in failed], console)
    if failed:
        say(console, f"{len(failed)} of {count(len(shards), 'shard')} failed; re-run the command to try them again")
        return 1
    say(console, plain(f"{count(len(shards), 'verified Parquet file')} in {table.url}"))
    return 0


def with_sources(shards: Sequence[Unit], given: Sequence[Unit]) -> list[Unit]:
    """Shards of the output, each opened where it was given, if it was.

    Raises:
        UserError: none of those given is in the output.
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
