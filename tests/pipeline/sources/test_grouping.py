"""The group of an image, for every kind of input, and the sums of features by group."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples_on_disk import MakeTar

from pez.errors import UserError
from pipeline.folder import OutputFolder
from pipeline.sources import group_sums
from pipeline.sources.base import Item, LateField, Source, Unit, UnitError
from pipeline.sources.choice import described_source
from pipeline.sources.folder_listing import files_below, images_of, lists_of
from pipeline.sources.folders import FolderSource, record, with_list_of
from pipeline.sources.group_by import GroupBy
from pipeline.sources.group_sums import GroupSum, SumsWriter, bounds, estimated, hash_of, read_sums, sketch
from pipeline.sources.grouping import grouped
from pipeline.sources.image_tables import ImageTableSource
from pipeline.sources.member_names import MemberNames
from pipeline.sources.tars import TarSource


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "expected folder, key:REGEX, json:FIELD or column:NAME"),
        ("artist", "expected folder, key:REGEX"),
        ("folder:x", "expected folder, key:REGEX"),
        ("json:", "names nothing; expected json:FIELD"),
        ("column: ", "names nothing; expected column:NAME"),
        ("key:", "names nothing; expected key:REGEX"),
        ("key:(", "expected a regular expression"),
        ("key:(a)(b)", "2 pairs of parentheses; expected one"),
    ],
)
def test_a_malformed_option_is_refused_in_one_line(given: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        GroupBy.parse(given)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("by", "key", "group"),
    [
        ("folder", "a/b/0001", "a/b"),
        ("folder", "0001", None),
        ("key:^[^_]+", "monet_12", "monet"),
        ("key:^([^_]+)_", "monet_12", "monet"),
        ("key:_(\\d*)$", "monet_", None),
        ("key:^x", "monet", None),
    ],
)
def test_a_group_is_found_in_the_key(by: str, key: str, group: str | None) -> None:
    found, reason = GroupBy.parse(by).group_of(Item(0, key))
    assert found == group
    assert (reason is None) == (group is not None)


@pytest.mark.parametrize(
    ("value", "group", "words"),
    [
        ("monet", "monet", ""),
        (7, "7", ""),
        (None, None, "missing or null"),
        (" ", None, "is empty"),
        (1.5, None, "holds a number; expected a text or an integer"),
        (True, None, "holds true or false"),
        (["a"], None, "holds a list"),
        ("x" * 5000, None, "5000 characters"),
    ],
)
def test_a_group_is_a_text_or_an_integer(value: Any, group: str | None, words: str) -> None:
    found, reason = GroupBy.parse("json:artist").group_of(Item(0, "k", field=value))
    assert (found, reason is None) == (group, group is not None)
    assert words in (reason or "")


def items_of(source: Source, unit: Unit) -> list[Item]:
    return list(source.read(unit, Counter()))


def of_artist(artist: object) -> bytes:
    return json.dumps({"meta": {"artist": artist}}).encode()


def test_the_json_of_a_tar_names_the_group_also_when_it_comes_late(make_tar: MakeTar) -> None:
    tar = make_tar(
        "in/a.tar",
        [
            ("1.jpg", b"x"),
            ("1.json", of_artist("monet")),
            ("2.jpg", b"x"),
            ("3.jpg", b"x"),
            ("3.json", b"{"),
            ("4.jpg", b"x"),
            ("4.json", of_artist(None)),
            ("2.json", of_artist(5)),
        ],
    )
    first, two, three, four, late = items_of(grouped(TarSource(), GroupBy("json", "meta.artist")), Unit(tar, "a"))
    assert first.group == "monet"
    assert two.group is None
    assert (three.group, three.no_group) == (None, "no group: its JSON is not valid")
    assert (four.group, four.no_group) == (None, "no group: its field 'meta.artist' is missing or null")
    assert isinstance(late, LateField)
    assert (late.index, late.group) == (two.index, "5")


def test_captions_do_not_become_items_of_a_grouped_source(make_tar: MakeTar) -> None:
    tar = make_tar("in/a.tar", [("x/1.jpg", b"x"), ("x/2.jpg", b"x"), ("x/1.txt", b"a late caption")])
    items = items_of(grouped(TarSource(), GroupBy("folder")), Unit(tar, "a"))
    assert [(item.key, item.group) for item in items] == [("x/1", "x"), ("x/2", "x")]


def test_the_json_file_beside_an_image_names_the_group(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jpg").write_bytes(b"x")
    (tmp_path / "a.json").write_bytes(of_artist("monet"))
    (tmp_path / "b.json").write_bytes(b"[]")
    images, _ = images_of(files_below(str(tmp_path)), MemberNames())
    lists = lists_of(str(tmp_path), images, 1000, 0, "images")
    output = OutputFolder(str(tmp_path / "out"))
    record(lists, output)
    unit = with_list_of(Unit(lists[0].unit, lists[0].stem), output)
    a, b, c = items_of(grouped(FolderSource(), GroupBy("json", "meta.artist")), unit)
    assert a.group == "monet"
    assert b.group is c.group is None
    assert "missing or null" in str(b.no_group)
    assert "the JSON beside it cannot be read" in str(c.no_group)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_a_column_of_a_table_names_the_group(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"t.{kind}"
    (tmp_path / "x.jpg").write_bytes(b"x")
    if kind == "parquet":
        pq.write_table(pa.table({"path": ["x.jpg"] * 2, "artist": ["monet", None]}), path)
    elif kind == "jsonl":
        path.write_text('{"path": "x.jpg", "artist": "monet"}\n{"path": "x.jpg"}\n')
    else:
        path.write_text("path,artist\nx.jpg,monet\nx.jpg,\n")
    source = grouped(ImageTableSource(url_column="path"), GroupBy("column", "artist"))
    first, second = items_of(source, Unit(str(path), "t"))
    assert (first.group, first.status) == ("monet", "ok")
    assert second.group is None
    with pytest.raises(UnitError, match="no column 'painter'|has the columns? 'painter'|'painter'"):
        items_of(grouped(ImageTableSource(url_column="path"), GroupBy("column", "painter")), Unit(str(path), "t"))


@pytest.mark.parametrize(
    ("source", "by", "words"),
    [
        (TarSource(), "column:x", "the input is not a table; expected folder, key:REGEX or json:FIELD"),
        (ImageTableSource(url_column="u"), "json:x", "the input is a table; expected column:NAME or key:REGEX"),
        (ImageTableSource(url_column="u"), "folder", "the input is a table"),
    ],
)
def test_a_kind_of_group_that_the_input_cannot_have_is_refused(source: Source, by: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        grouped(source, GroupBy.parse(by))
    assert words in str(error.value)


def test_a_grouped_source_is_made_again_from_its_description() -> None:
    source = grouped(TarSource(image_key="png"), GroupBy.parse("json:a"), 50)
    assert described_source(source.describe()) == source


@pytest.fixture
def folder(tmp_path: Path) -> OutputFolder:
    return OutputFolder(str(tmp_path / "out"))


def image(*values: float) -> GroupSum:
    return GroupSum(images=1, vector=np.array(values, np.float64))


def test_partitions_have_every_group_once(folder: OutputFolder) -> None:
    writer = SumsWriter(folder, "s")
    for i in range(200):
        writer.add(f"g{i % 50}", image(i, 1) if i != 7 else GroupSum(failed=1, status="bad_image", reason="k: broken"))
    writer.add("failed", GroupSum(failed=1, status="no_image", reason="k: none"))
    assert writer.close() == 1
    found = [pair for partition in range(7) for pair in read_sums(folder, "s.0000", partition, 7)]
    sums = dict(found)
    assert len(found) == len(sums) == 51
    assert sums["g3"].images == 4
    assert sums["g3"].vector is not None
    assert sums["g3"].vector.tolist() == [3 + 53 + 103 + 153, 4]
    assert (sums["g7"].images, sums["g7"].failed, sums["g7"].reason) == (3, 1, "k: broken")
    assert (sums["failed"].vector, sums["failed"].status) == (None, "no_image")


def test_bounds_divide_all_hashes() -> None:
    for partitions in (1, 3, 1000):
        ends = [bounds(i, partitions) for i in range(partitions)]
        assert ends[0][0] == 0
        assert ends[-1][1] == 2**63 - 1
        assert all(before[1] + 1 == after[0] for before, after in itertools.pairwise(ends))


def test_sums_above_a_limit_are_written_in_runs(folder: OutputFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_sums, "MAX_BYTES", 160)  # ten vectors
    writer = SumsWriter(folder, "s")
    for i in range(60):
        writer.add(f"g{i % 30}", image(1.0, i))
    runs = writer.close()
    assert runs == 6
    total: dict[str, GroupSum] = {}
    for run in range(runs):
        for group, found in read_sums(folder, f"s.{run:04d}", 0, 1):
            total.setdefault(group, GroupSum()).add(found)
    assert {group: found.vector.tolist() for group, found in total.items() if found.vector is not None} == {
        f"g{i}": [2.0, 2.0 * i + 30] for i in range(30)
    }


def test_missing_sums_say_what_to_do(folder: OutputFolder) -> None:
    with pytest.raises(UnitError, match="re-run the command, which makes missing files again"):
        read_sums(folder, "s.0000", 0, 1)


def test_the_number_of_groups_is_exact_when_small_and_estimated_when_large() -> None:
    hashes = [hash_of(str(i)) for i in range(20_000)]
    random.Random(0).shuffle(hashes)
    assert estimated(sketch(hashes[:200])) == 200
    assert estimated(sketch([*sketch(hashes[:12_000]), *sketch(hashes[8_000:])])) == pytest.approx(20_000, rel=0.2)
