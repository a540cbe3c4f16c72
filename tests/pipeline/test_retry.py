"""--retry-failed: the rows that are not ok again, and nothing else, with the same file as if they had never failed."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from samples_on_disk import MakeTar, encoded

import pez
from jobs import caption, command
from pipeline.rows import Row
from pipeline.settings import CaptionSettings
from pipeline.sources.base import Item, Unit, UnitError
from pipeline.sources.units import name_units
from pipeline.stages.learn import Learner, describe, learn_unit
from pipeline.table import PromptTable

SETTINGS = CaptionSettings(model="demo", lanes=16)
METHOD = pez.PezSettings(tokens=4, steps=5, swaps=2)
DESCRIBED = describe(SETTINGS, METHOD, "cpu")


class Watched(Learner):
    """Remembers which keys it was given."""

    keys: list[str]

    def learn(self, unit: Unit, items: Iterable[Item], parts: int = 1) -> Iterator[tuple[int, Row]]:
        self.keys = []

        def seen() -> Iterator[Item]:
            for item in items:
                self.keys.append(item.key)
                yield item

        return super().learn(unit, seen(), parts)


@pytest.fixture(scope="module")
def learner() -> Watched:
    return Watched(SETTINGS, METHOD)


@pytest.fixture
def table(tmp_path: Path) -> PromptTable:
    return PromptTable(str(tmp_path / "out"), DESCRIBED)


def members(images: list, broken: tuple[int, ...] = ()) -> list[tuple[str, bytes]]:
    named: list[tuple[str, bytes]] = []
    for i in range(6):
        picture = encoded(images[i])
        named += [(f"{i}.png", picture[:60] if i in broken else picture), (f"{i}.txt", f"caption {i}".encode())]
    return [*named, ("7.txt", b"never had a picture")]


def test_a_retry_of_failed_rows_writes_the_file_of_an_undisturbed_run(
    make_tar: MakeTar, images: list, learner: Watched, table: PromptTable, tmp_path: Path
) -> None:
    shard = Unit(make_tar("in/a.tar", members(images, broken=(1, 4))), "a")
    first = learn_unit(shard, learner, table)
    assert (first.ok, first.failed) == (4, {"bad_image": 2, "no_image": 1})

    make_tar("in/a.tar", members(images))  # the damaged pictures are whole now
    again = learn_unit(shard, learner, table, retry_failed=True)
    assert learner.keys == ["1", "4", "7"]
    assert (again.ok, again.failed) == (6, {"no_image": 1})
    assert again.failures == [{"key": "7", "reason": "no image of this key; found a caption"}]
    assert again.seconds > first.seconds

    learn_unit(shard, learner, PromptTable(str(tmp_path / "fresh"), DESCRIBED))
    assert Path(f"{table.url}/a.parquet").read_bytes() == (tmp_path / "fresh" / "a.parquet").read_bytes()
    assert json.loads(Path(f"{table.url}/_reports/a.json").read_text())["ok"] == 6


def test_rows_that_fail_again_keep_the_others(
    make_tar: MakeTar, images: list, learner: Watched, table: PromptTable
) -> None:
    shard = Unit(make_tar("in/a.tar", members(images, broken=(1,))), "a")
    learn_unit(shard, learner, table)
    before = Path(f"{table.url}/a.parquet").read_bytes()
    assert learn_unit(shard, learner, table, retry_failed=True).failed == {"bad_image": 1, "no_image": 1}
    assert Path(f"{table.url}/a.parquet").read_bytes() == before


def test_a_shard_without_failed_rows_is_not_read_again(
    scene_tars: list[str], learner: Watched, table: PromptTable
) -> None:
    shards = name_units(scene_tars[:2])
    reports = [learn_unit(shard, learner, table) for shard in shards]
    assert table.divide(shards, retry_failed=True) == (shards, [])
    Path(scene_tars[0]).unlink()
    assert learn_unit(shards[0], learner, table, retry_failed=True) == reports[0]


def test_shards_with_failed_rows_and_unfinished_ones_are_to_do(
    make_tar: MakeTar, images: list, scene_tars: list[str], learner: Watched, table: PromptTable
) -> None:
    shards = name_units([make_tar("in/a.tar", members(images, broken=(0,))), *scene_tars[:2]])
    for shard in shards[:2]:
        learn_unit(shard, learner, table)
    assert table.divide(shards) == (shards[:2], [shards[2]])
    done, left = table.divide(shards, retry_failed=True)
    assert (done, sorted(s.stem for s in left)) == ([shards[1]], ["a", "scenes-1"])


def test_a_retry_takes_the_verification_of_the_earlier_rows_away(
    make_tar: MakeTar, images: list, learner: Watched, table: PromptTable
) -> None:
    shard = Unit(make_tar("in/a.tar", members(images, broken=(0,))), "a")
    learn_unit(shard, learner, table)
    marker = Path(f"{table.url}/_verified/a.json")
    marker.parent.mkdir()
    marker.write_text("{}")
    make_tar("in/a.tar", members(images))
    learn_unit(shard, learner, table, retry_failed=True)
    assert not marker.exists()


def test_a_tar_with_other_keys_is_not_mixed_in(
    make_tar: MakeTar, images: list, learner: Watched, table: PromptTable
) -> None:
    shard = Unit(make_tar("in/a.tar", members(images, broken=(0,))), "a")
    learn_unit(shard, learner, table)
    before = Path(f"{table.url}/a.parquet").read_bytes()
    make_tar("in/a.tar", [("new.png", encoded(images[9])), *members(images)])
    with pytest.raises(
        UnitError, match="the keys of .* have changed since its prompts were learned; remove .*a.parquet to redo all"
    ):
        learn_unit(shard, learner, table, retry_failed=True)
    assert Path(f"{table.url}/a.parquet").read_bytes() == before


def run(words: list[object], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["jobs.caption", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        command.run(caption.CaptionJob, caption.__doc__, caption.caption)
    return ended.value.code  # type: ignore[return-value]


@pytest.mark.usefixtures("ray_cluster")
def test_the_job_retries_what_failed_and_captions_what_is_missing(
    make_tar: MakeTar,
    images: list,
    scene_tars: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def words(output: str, *more: object) -> list[object]:
        settings = ["--model", "demo", "--lanes", 16, "--tokens", 4, "--steps", 5, "--swaps", 2]
        return ["--input", tmp_path / "in", "--output", tmp_path / output, *settings, *more]

    make_tar("in/a.tar", members(images, broken=(1, 4)))
    Path(scene_tars[2]).rename(tmp_path / "later.tar")
    assert run(words("out", "--local"), monkeypatch) == 0
    untouched = (tmp_path / "out" / "_reports" / "scenes-0.json").stat().st_mtime_ns

    make_tar("in/a.tar", members(images))
    (tmp_path / "later.tar").rename(scene_tars[2])
    assert run(words("out", "--steps", 6, "--local", "--retry-failed"), monkeypatch) == 2  # the last --steps counts
    assert "steps was 5 and is 6" in capsys.readouterr().err
    assert run(words("out", "--retry-failed", "--parts", 2, "--actors", 1), monkeypatch) == 0  # on Ray
    assert "4/4 shards" in capsys.readouterr().out
    assert (tmp_path / "out" / "_reports" / "scenes-0.json").stat().st_mtime_ns == untouched
    assert (tmp_path / "out" / "_SUCCESS").exists()

    assert run(words("fresh", "--local"), monkeypatch) == 0
    files = sorted(path.name for path in (tmp_path / "fresh").glob("*.parquet"))
    assert files == ["a.parquet", "scenes-0.parquet", "scenes-1.parquet", "scenes-2.parquet"]
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes(), name
    assert not (tmp_path / "out" / "_parts" / "scenes-2").exists()
