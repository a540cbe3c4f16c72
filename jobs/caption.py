"""Learn a hard prompt for every image of a WebDataset and write them as Parquet.

    python -m jobs.caption --demo --output out
    python -m jobs.caption --input 's3://bucket/{00000..00999}.tar' --output s3://bucket/prompts --tokens 16

The same command again goes on where the last one stopped; with --retry-failed it also redoes the rows that failed.
Exit status: 0 all shards are done, 1 some failed, 2 bad usage.
"""

import dataclasses
import sys
from typing import Annotated

import torch
import tyro
from rich.console import Console

import pez
from jobs import command
from pipeline import cluster
from pipeline.caption import Captioner, CaptionSettings, check_settings, describe, run_serially
from pipeline.cluster import ClusterSettings
from pipeline.demo_shards import demo_shards
from pipeline.parts import split_shard, sweep_parts
from pipeline.progress import JobProgress, prompt_table
from pipeline.shards import Shard, expand_shards
from pipeline.table import PromptTable


@dataclasses.dataclass(frozen=True)
class CaptionJob:
    """Options of the job."""

    output: str
    """folder for the Parquet files: local, s3://, gs://"""
    input: tuple[str, ...] = ()
    """tars: addresses with {000..999} or *, folders, or @FILE with one a line"""
    demo: bool = False
    """shipped pictures and model; no network, no GPU"""
    retry_failed: bool = False
    """also caption those again that an earlier run has as failed rows, and only those"""
    local: bool = False
    """no Ray: shard after shard in this process"""
    device: str | None = None
    """cpu or cuda; default = cuda where there is one"""
    caption: Annotated[CaptionSettings, tyro.conf.arg(name="")] = CaptionSettings()
    method: Annotated[pez.PezSettings, tyro.conf.arg(name="")] = pez.PezSettings()
    cluster: Annotated[ClusterSettings, tyro.conf.arg(name="")] = ClusterSettings()


def caption(job: CaptionJob) -> int:
    """Run the job; returns its exit status."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    if job.demo:
        job = dataclasses.replace(job, caption=dataclasses.replace(job.caption, model="demo"))
    check_settings(job.caption, job.method)
    inputs = [*job.input, *(demo_shards() if job.demo else ())]
    shards = expand_shards(inputs)
    if job.local:
        plan = None
        device = job.device or ("cuda" if torch.cuda.is_available() else "cpu")
    else:
        cluster.connect(job.cluster)
        plan = cluster.plan_actors(job.cluster, job.device)
        device = plan.device
    described = describe(job.caption, job.method, device)
    table = PromptTable(job.output, described)
    table.check()
    done, pending = table.divide(shards, job.retry_failed)
    units = [unit for shard in pending for unit in split_shard(shard, job.cluster.parts)]
    with JobProgress(len(shards), len(done), console) as progress:
        if not pending:
            failed = {}
        elif plan is None:
            captioner = Captioner(job.caption, job.method, device)
            table.claim()
            table.record([*done, *pending])
            failed = run_serially(units, captioner, table, progress.report, job.retry_failed)
        else:
            table.claim()
            table.record([*done, *pending])
            starter = cluster.actor_starter(job.caption, job.method, plan, job.output, described, job.retry_failed)
            stage = cluster.Stage("captions", starter, plan.actors, progress.report)
            failed = cluster.run_on_ray(units, [stage], job.cluster, progress.look, progress.note)
    if not failed:
        sweep_parts([*done, *pending], table)
    return _conclude(job, table, [*done, *pending], failed, console)


def _conclude(
    job: CaptionJob, table: PromptTable, shards: list[Shard], failed: dict[str, str], console: Console
) -> int:
    for url, reason in failed.items():
        console.print(f"failed: {url}: {reason}", style="red", highlight=False, soft_wrap=True, markup=False)
    shown = next((s for s in shards if s.url not in failed and table.finished(s)), None)
    if shown is not None:
        console.print(prompt_table(table.read(shown)))
    if failed:
        console.print(f"{len(failed)} of {len(shards)} shards failed; run the same command to try them again")
        return 1
    table.succeed()
    console.print(f"{len(shards)} Parquet files in {table.url}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    command.run(CaptionJob, __doc__, caption)
