"""Paint the prompts of an existing output with a text-to-image model and compare the pictures with the originals.

    python -m jobs.verify out --verify demo
    python -m jobs.verify s3://bucket/prompts --verify stabilityai/stable-diffusion-2-1 --keep-images

The numbers are those of `jobs.caption --verify`. The images are read again from their shards. The same command again goes on
where the last one stopped. Exit status: 0 all shards are verified, 1 some failed, 2 bad usage.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated

import torch
import tyro
from rich.console import Console

from jobs import command
from pipeline import cluster
from pipeline.inputs import expand_shards
from pipeline.progress import JobProgress, plain, prompt_table
from pipeline.settings import ClusterSettings, VerifySettings
from pipeline.shards import InputError, Shard
from pipeline.shared_disk import check_outside_package
from pipeline.table import PromptTable
from pipeline.verify import check_verification, resolved, verified_table, verify_serially


@dataclasses.dataclass(frozen=True)
class VerifyJob:
    """Options of the job."""

    output: tyro.conf.Positional[str]
    """folder that jobs.caption wrote"""
    input: tuple[str, ...] = ()
    """fresh addresses of its tars, written as for jobs.caption, where a signature has run out"""
    local: bool = False
    """no Ray: shard after shard in this process"""
    device: str | None = None
    """cpu or cuda; default = cuda where there is one"""
    verification: Annotated[VerifySettings, tyro.conf.arg(name="")] = VerifySettings()
    cluster: Annotated[ClusterSettings, tyro.conf.arg(name="")] = ClusterSettings()


def verify(job: VerifyJob) -> int:
    """Run the job; returns its exit status."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    check_outside_package([job.output], "output")
    table = PromptTable.written(job.output)
    job = dataclasses.replace(job, verification=resolved(job.verification))
    check_verification(job.verification, table.settings["model"], table.settings["pretrained"])
    shards = table.shards()
    if not shards:
        raise InputError(f"no finished shard in {table.url}; run jobs.caption first")
    if job.input:
        shards = with_sources(shards, expand_shards(job.input))
    plan, device = None, job.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not job.local:
        cluster.connect(job.cluster)
        plan = cluster.plan_verifiers(job.cluster, cluster.plan_actors(job.cluster, job.device))[1]
        device = plan.device
    verified = verified_table(table, job.verification, device)
    pending = verified.pending(shards)
    if pending and plan is not None:
        verified.claim()
    with JobProgress(len(shards), None, console, verified=len(shards) - len(pending)) as progress:
        if plan is None:
            failed = verify_serially(pending, verified, job.verification, device, progress.report_verified)
        elif pending:
            with cluster.seen_by_actors(table, pending) as disk:
                stage = cluster.verify_stage(job.verification, plan, verified, (), progress.report_verified, disk)
                failed = cluster.run_on_ray(pending, [stage], job.cluster, progress.look, progress.note)
        else:
            failed = {}
    for url, reason in failed.items():
        line = plain(f"failed: {url}: {reason}")
        console.print(line, style="red", highlight=False, soft_wrap=True, markup=False)
    shown = next((shard for shard in shards if shard.url not in failed), None)
    if shown is not None:
        console.print(prompt_table(table.read(shown)))
    if failed:
        console.print(f"{len(failed)} of {len(shards)} shards failed; run the same command to try them again")
        return 1
    console.print(f"{len(shards)} verified Parquet files in {table.url}", highlight=False, soft_wrap=True, markup=False)
    return 0


def with_sources(shards: Sequence[Shard], given: Sequence[Shard]) -> list[Shard]:
    """Shards of the output, each opened where it was given, if it was.

    Raises:
        InputError: none of those given is in the output.
    """
    sources = {shard.url: shard.source for shard in given}
    if not any(shard.url in sources for shard in shards):
        raise InputError(
            f"--input has {given[0].url}, which this output does not have; expected its tars, like {shards[0].url}"
        )
    return [dataclasses.replace(shard, source=sources.get(shard.url, shard.source)) for shard in shards]


if __name__ == "__main__":
    command.run(VerifyJob, __doc__, verify)
