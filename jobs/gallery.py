"""Write the rows of an output as a page: images, prompts, captions and scores, to be sorted and filtered.

    python -m jobs.gallery out
    python -m jobs.gallery s3://bucket/prompts --to gallery --sample 10000

The page needs no server and no network: open its index.html from a disk, or put its folder into a bucket. The images are read
again from the input; those that are not found have a placeholder. Exit status: 0 written, 2 bad usage.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

from jobs import command
from jobs.arguments import POSITIONAL
from pez.errors import UserError
from pipeline.terminal import Activity, count, open_console, plain, say

if TYPE_CHECKING:
    from pipeline.table import PromptTable


@dataclasses.dataclass(frozen=True)
class GalleryJob:
    """Options of the command."""

    output: Annotated[str, POSITIONAL]
    """folder that jobs.caption wrote"""
    to: str | None = None
    """folder for the page, local or of a store; default = _gallery in the output"""
    sample: int = 2000
    """rows that are shown at most; where there are more, always the same ones of at most 32 units"""
    thumbnail: int = 256
    """pixels of the longer side of the images"""
    input: tuple[str, ...] = ()
    """fresh URLs of its tars or tables, written as for jobs.caption, where a signature has run out"""

    def check(self, given: frozenset[str]) -> None:
        """Refuse what cannot be shown."""
        if not 1 <= self.sample <= 1_000_000:
            raise UserError(f"sample is {self.sample}; expected 1 to 1000000")
        if not 16 <= self.thumbnail <= 1024:
            raise UserError(f"thumbnail is {self.thumbnail}; expected 16 to 1024")


def gallery(job: GalleryJob) -> int:
    """Run the job; returns its exit status."""
    console = open_console()
    notes: list[str] = []
    with Activity(console, "reading the rows") as activity:
        with command.importing():
            from jobs.verify import with_sources
            from pipeline.folder import OutputFolder
            from pipeline.gallery.pictures import thumbnails
            from pipeline.gallery.selection import select_rows
            from pipeline.gallery.site import Site
            from pipeline.sources.image_inputs import fresh_units
            from pipeline.table import PromptTable

        table = PromptTable.written(job.output)
        shards = table.shards()
        if not shards:
            raise UserError(f"no finished shard in {table.url}; run jobs.caption first")
        if job.input:
            shards = with_sources(shards, fresh_units(job.input, table.settings))
        folder = OutputFolder(job.to if job.to is not None else _inside(table))
        if folder.url == table.url:
            raise UserError(f"--to is {job.to}, the output itself; expected a folder of its own")
        site = Site(folder)
        selection = select_rows(table, shards, job.sample)
        site.begin()
        activity.now(f"reading the images of {count(len(selection.rows), 'row')}")
        for row, which, data in thumbnails(table, selection, job.thumbnail, notes):
            site.add_picture(row, which, data)
        site.finish(_title(table.url), selection, _failures(table), _settings(table))
    for note in notes:
        say(console, plain(f"note: {note}"))
    missing = sum("original" not in site.pictures.get(i, ()) for i in range(len(selection.rows)))
    shown = f"{len(selection.rows):,} of {count(selection.total, 'row')}"
    say(console, plain(f"{shown}, {missing:,} without an image" if missing else shown))
    say(console, plain(f"{site.folder.url}/index.html"))
    return 0


def _inside(table: PromptTable) -> str:
    path = table.at("_gallery")
    return path if table.local else str(table.fs.unstrip_protocol(path))


def _title(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2] or url


def _failures(table: PromptTable) -> dict[str, str]:
    """What is known of units that failed, by their stem: the end of their log."""
    found = {}
    for stem in sorted(table.names("_failures", ".txt"))[:1000]:
        with table.reading(f"_failures/{stem}.txt"):
            found[stem] = table.fs.cat_file(table.at(f"_failures/{stem}.txt")).decode("utf-8", "replace")[-4000:]
    return found


def _settings(table: PromptTable) -> dict[str, object]:
    run, verification = table.read_json("_run.json") or {}, table.read_json("_verify.json") or {}
    settings = run.get("all_settings") or run.get("settings") or {}
    return {
        "output": table.url,
        **settings,
        **({"verification": verification["settings"]} if "settings" in verification else {}),
    }


def main(prog: str | None = None) -> None:
    command.run(GalleryJob, __doc__, gallery, prog)


if __name__ == "__main__":
    main()
