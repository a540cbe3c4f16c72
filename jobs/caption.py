"""Learn a hard prompt for every image of folders, WebDataset shards or tables, and write them as Parquet.

    python -m jobs.caption --demo --output out
    python -m jobs.caption --input photos --output out
    python -m jobs.caption --input 's3://bucket/{00000..00999}.tar' --output s3://bucket/prompts --tokens 16
    python -m jobs.caption --demo --output out --verify demo        # also generates images and compares
    python -m jobs.caption --input photos --output out --group-by folder    # one prompt for each folder

Re-run the command to resume; with --retry-failed it also redoes the rows that failed.
Exit status: 0 = all shards are done, 1 = some failed, 2 = bad usage.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Annotated

from jobs import command, driver, grouped
from jobs.arguments import Group
from jobs.options import (
    LearnOptions,
    RunOptions,
    VerifyOptions,
    expect_device,
    expect_output,
    of_demo,
    refuse_beside_demo,
    refuse_ignored,
    refuse_without,
    resolved_method,
)
from pez.errors import UserError
from pez.models.names import is_demo
from pez.settings import ModelSettings
from pipeline.settings import Bookkeeping, GroupSettings
from pipeline.sources.group_by import GroupBy

if TYPE_CHECKING:
    from pipeline.sources.found import Found


_OF_GROUPS = ("groups_per_unit", "incomplete_groups")
_OF_SINGLE_IMAGES = ("verify", "retry_failed", "caption_key", "caption_column", "caption_weight")


@dataclasses.dataclass(frozen=True)
class CaptionJob(LearnOptions, VerifyOptions, RunOptions):
    """Options of `pez caption`."""

    output: str
    """folder for the Parquet files: local, s3://, gs://"""
    input: tuple[str, ...] = ()
    """folders of images, tars, or tables with images or their URLs: paths or URLs, with {000..999} or *; or @FILE, which
    lists one per line"""
    demo: bool = False
    """use built-in images and a demo model; no network, no GPU"""
    bookkeeping: Bookkeeping | None = None
    """where to keep reports and settings: inside the output (default), or beside it in OUTPUT.pez, for readers such as
    Polars that read every file of a folder"""
    retry_failed: bool = False
    """also redo rows that failed in an earlier run, and only those"""
    groups: Annotated[GroupSettings, Group("groups")] = GroupSettings()

    wandb: str | None = None
    """project of Weights & Biases that gets the figures of each shard and a few of its images with their prompts"""

    def check(self, given: frozenset[str]) -> None:
        """Refuse options that would be ignored, and everything that can be checked without loading anything."""
        if self.demo:
            refuse_beside_demo(self.caption, given, ["input"])
        refuse_ignored(given, self.method, self.caption)
        refuse_without("group_by", given, _OF_GROUPS, "without --group-by")
        if self.groups.group_by is not None:
            GroupBy.parse(self.groups.group_by)
            refuse_without("", given, _OF_SINGLE_IMAGES, "with --group-by, whose rows are of several images")
        expect_device(self.device, on_ray=not self.local)
        expect_output(self.output)


def caption(job: CaptionJob) -> int:
    """Run the job; returns its exit status."""
    if not job.input and not job.demo:
        raise UserError("no input given; expected --input with a folder of images, tars or tables, or --demo")
    settings = of_demo(job.caption) if job.demo else job.caption

    def find(left_out: Counter[str]) -> Found:
        from pipeline.folder import OutputFolder
        from pipeline.sources.demo_shards import demo_shards
        from pipeline.sources.image_inputs import find_images

        output = OutputFolder(job.output, job.bookkeeping)
        return find_images([*job.input, *(demo_shards() if job.demo else ())], output, settings, left_out)

    table_job = driver.TableJob(
        settings=settings,
        method=resolved_method(job.method, settings),
        find=find,
        output=job.output,
        bookkeeping=job.bookkeeping,
        retry_failed=job.retry_failed,
        verification=job.verification,
        device=job.device,
        local=job.local,
        cluster=job.cluster,
        wandb=job.wandb,
        note=note_on_the_demo(settings) if job.input else None,
    )
    return driver.run(table_job) if job.groups.group_by is None else grouped.run(table_job, job.groups)


def note_on_the_demo(settings: ModelSettings) -> str | None:
    """A note on the limits of the demo models, for images other than the demo's own."""
    if not is_demo(settings):
        return None
    return (
        f"note: the model {settings.name} knows only drawn 64x64 scenes; its prompts for other images are meaningless. "
        "For photographs use --model ViT-L-14 --pretrained openai, or omit --model for ViT-H-14"
    )


def main(prog: str | None = None) -> None:
    command.run(CaptionJob, __doc__, caption, prog)


if __name__ == "__main__":
    main()
