"""What a resume looks at: two listings and the recorded URLs; a report only where it could be another URL's."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.rows import Row
from pipeline.sources.base import Unit
from pipeline.sources.units import hashed_stem
from pipeline.table import PromptTable


class Counted(PromptTable):
    """Remembers which small files it reads."""

    def __init__(self, url: str) -> None:
        self.read_names: list[str] = []
        super().__init__(url, {"steps": 1})

    def read_json(self, name: str) -> dict | None:
        self.read_names.append(name)
        return super().read_json(name)


@pytest.fixture
def table(tmp_path: Path) -> Counted:
    return Counted(str(tmp_path / "out"))


def shards(folder: str, count: int) -> list[Unit]:
    return [Unit(f"s3://{folder}/{i:03d}.tar", f"{i:03d}") for i in range(count)]


def finish(table: PromptTable, some: list[Unit]) -> None:
    for shard in some:
        table.publish(shard, [Row("key", shard.url, "ok", similarity=0.5)], 1.0)


def reports_read(table: Counted) -> Iterator[str]:
    return (name for name in table.read_names if name.startswith("_reports/"))


def test_a_resume_reads_no_report(table: Counted) -> None:
    every = shards("a", 50)
    table.record(every)
    finish(table, every[:30])
    table.read_names.clear()
    assert table.divide(every) == (every[:30], every[30:])
    assert list(reports_read(table)) == []
    assert len(table.read_names) == 1


def test_the_urls_are_written_once_and_grow_with_the_input(table: Counted) -> None:
    folder = Path(table.url) / "_inputs"
    table.record(shards("a", 5))
    table.record(shards("a", 5))
    table.record(shards("a", 3))
    assert len(list(folder.iterdir())) == 1
    table.record(shards("a", 8))
    assert len(list(folder.iterdir())) == 2
    assert sum(path.read_text().count("s3://") for path in folder.iterdir()) == 8


def test_another_address_with_the_same_name_gets_a_stem_of_its_own(table: Counted) -> None:
    ours, theirs = shards("a", 4), shards("b", 4)
    table.record(ours)
    finish(table, ours[:2])
    done, left = table.divide(theirs)
    assert done == []
    assert left == [Unit(s.url, hashed_stem(s.url)) for s in theirs]  # also of those that may be in work
    table.record(left)
    finish(table, left)
    assert table.divide(theirs) == (left, [])
    assert table.divide(ours)[0] == ours[:2]
    assert [shard.url for shard in table.divide(ours)[1]] == [shard.url for shard in ours[2:]]


def test_an_output_without_recorded_urls_is_told_by_its_reports(table: Counted) -> None:
    every = shards("a", 6)
    finish(table, every[:4])
    assert table.divide(every) == (every[:4], every[4:])
    assert len(list(reports_read(table))) == 4


def test_work_to_do_takes_the_mark_of_success_away(table: Counted) -> None:
    finish(table, shards("a", 1))
    table.succeed()
    table.claim()
    assert not (Path(table.url) / "_SUCCESS").exists()
