"""What is typed after --input: every file once, however it is spelled; nothing that a job wrote; nothing dropped silently."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pez.errors import UserError
from pipeline.rows import Row
from pipeline.sources.base import Unit
from pipeline.sources.inputs import TABLES, TARS, Kind, expand_inputs
from pipeline.table import PromptTable


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def names(*patterns: object, **options: object) -> list[str]:
    return [os.path.basename(s.url) for s in expand_inputs([str(p) for p in patterns], **options)]  # type: ignore[arg-type]


def test_a_folder_has_tars_of_every_spelling_and_says_what_else_it_has(tmp_path: Path) -> None:
    touch(tmp_path, "0.tar", "1.tar.gz", "2.tgz", "3.TAR", "4.tar.zst", "0.parquet", "notes.txt", "._0.tar", "_x.tar")
    left_out: Counter[str] = Counter()
    assert names(tmp_path, left_out=left_out) == ["0.tar", "1.tar.gz", "2.tgz", "3.TAR"]
    assert left_out == {"files that are not .tar, .tar.gz or .tgz": 3}


def test_hidden_names_are_no_input_unless_typed(tmp_path: Path) -> None:
    touch(tmp_path, "00000.tar", "._00000.tar", ".cache/1.tar", "_old/2.tar")
    for pattern in (tmp_path, tmp_path / "*.tar", tmp_path / "**/*.tar", tmp_path / "*"):
        assert names(pattern) == ["00000.tar"], pattern
    assert names(tmp_path / "._00000.tar") == ["._00000.tar"]
    assert names(tmp_path / "_old") == ["2.tar"]
    assert names(tmp_path / "_old/*.tar") == ["2.tar"]
    assert names(tmp_path / "_o*/*.tar") == ["2.tar"]
    assert names(tmp_path / "._*.tar") == ["._00000.tar"]


def test_globs_enter_linked_folders_as_a_shell_does(tmp_path: Path) -> None:
    touch(tmp_path / "disk", "a/0.tar", "b/1.tar")
    (tmp_path / "linked").mkdir()
    for name in "ab":
        (tmp_path / "linked" / name).symlink_to(tmp_path / "disk" / name)
    for pattern in ("linked/*/*.tar", "linked/**/*.tar"):
        assert names(tmp_path / pattern) == ["0.tar", "1.tar"]


def test_links_that_lead_in_circles_end(tmp_path: Path) -> None:
    touch(tmp_path, "real/0.tar", "real/deep/1.tar", "real/deep/_old/2.tar")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "x").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "real" / "deep" / "self").symlink_to(tmp_path / "real" / "deep")
    for pattern in ("**/*.tar", "linked/**/*.tar", "**", "**/**/*.tar", "real/**/deep/*.tar"):
        found = names(tmp_path / pattern)
        assert sorted(found) == (["1.tar"] if "deep" in pattern else ["0.tar", "1.tar"]), pattern
    assert names(tmp_path / "**/_old/*.tar") == ["2.tar"]


def test_links_that_lead_back_end_no_glob_in_a_loop(tmp_path: Path) -> None:
    touch(tmp_path, "a/0.tar", "a/b/1.tar", "[c]/2.tar", ".d/3.tar")
    for number in range(6):  # of which each doubles the paths
        (tmp_path / "a" / f"loop{number}").symlink_to(tmp_path)
    assert names(tmp_path / "**/*.tar") == ["2.tar", "0.tar", "1.tar"]
    assert names(tmp_path / "a/**") == ["0.tar", "1.tar", "2.tar"]
    assert names(tmp_path / "**/b/**/*.tar") == ["1.tar"]


def test_a_glob_of_tars_and_sidecars_takes_the_tars(tmp_path: Path) -> None:
    touch(tmp_path, "00000.tar", "00000.parquet", "00000_stats.json", "shard-1", "shard-2")
    left_out: Counter[str] = Counter()
    assert names(tmp_path / "0*", left_out=left_out) == ["00000.tar"]
    assert left_out.total() == 2
    assert names(tmp_path / "shard-*") == ["shard-1", "shard-2"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            ["a.jpg", "b.jpg", "c.png"],
            r"no tar in .*: found 2 x .jpg; expected .tar, .tar.gz or .tgz \(pack them: tar cf",
        ),
        ([".DS_Store"], "no tar matches"),
        ([], "no tar matches"),
    ],
)
def test_a_folder_without_tars_says_what_it_holds(tmp_path: Path, files: list[str], words: str) -> None:
    touch(tmp_path, *files)
    with pytest.raises(UserError, match=words):
        names(tmp_path)


def test_folders_of_stores_and_file_addresses_are_folders(tmp_path: Path) -> None:
    touch(tmp_path, "0.tar", "1.tgz")
    fs = fsspec.filesystem("memory")
    for name in ("0.tar", "1.tar.gz", "_x.tar", ".y.tar", "readme.md"):
        fs.pipe_file(f"/folders/data/{name}", b"x")
    for address in (
        "memory://folders/data",
        "memory://folders/data/",
        "memory://folders/data/*",
        "memory://folders/**/*.tar*",
    ):
        assert names(address) == ["0.tar", "1.tar.gz"], address
    for address in (f"file://{tmp_path}", f"file://{tmp_path}/", f"file://{tmp_path}/*"):
        assert names(address) == ["0.tar", "1.tgz"], address
    with pytest.raises(UserError, match="no tar matches"):
        names("memory://folders/nothing/")
    with pytest.raises(UserError, match="a folder on a web server, which cannot be listed"):
        names("https://host/data/")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_list_is_read_in_the_encodings_that_editors_write(tmp_path: Path, encoding: str) -> None:
    touch(tmp_path, "ä.tar", "1.tar")
    (tmp_path / "list").write_bytes(f"# mine\r\n{tmp_path}/ä.tar\r\n{tmp_path}/1.tar\r\n".encode(encoding))
    assert names(f"@{tmp_path}/list") == ["ä.tar", "1.tar"]


def test_a_list_that_is_empty_or_no_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# nothing\n")
    (tmp_path / "latin").write_bytes("é.tar\n".encode("latin-1"))
    for file, words in (("empty", "is empty"), ("latin", "save it as UTF-8")):
        with pytest.raises(UserError, match=words):
            names(f"@{tmp_path}/{file}")


def write_output(folder: Path) -> None:
    table = PromptTable(str(folder), {})
    table.claim()
    table.publish(Unit("/x/a.tar", "a"), [Row("key", "/x/a.tar", "ok")], 1.0)
    touch(folder, "_regenerated/a.tar", "_regenerated/b/c.tar", "more/d.tar")


def test_what_a_job_wrote_is_no_input(tmp_path: Path) -> None:
    touch(tmp_path, "A/0.tar", "A/sub/1.tar")
    write_output(tmp_path / "A" / "out")
    left_out: Counter[str] = Counter()
    assert names(tmp_path / "A/**/*.tar", left_out=left_out) == ["0.tar", "1.tar"]
    assert left_out == {"below the output of a job": 1}  # names that begin with _ are not looked at
    for pattern in ("A/out", "A/out/_regenerated", "A/out/_regenerated/a.tar", "A/out/more/*.tar"):
        with pytest.raises(UserError, match="the output of a job|no tar in"):
            names(tmp_path / pattern)
    with pytest.raises(UserError, match="is in .*new, the output of a job"):
        names(touch(tmp_path, "new/3.tar") / "new/3.tar", output=str(tmp_path / "new"))


SPELLINGS: dict[str, Callable[[Path], str]] = {
    "relative": lambda path: os.path.relpath(path),
    "dotted": lambda path: f"./{os.path.relpath(path)}",
    "absolute": str,
    "url": lambda path: f"file://{path}",
    "home": lambda path: f"~/{os.path.relpath(path, os.path.expanduser('~'))}",
    "linked": lambda path: f"link/{path.name}",
    "braces": lambda path: f"{path.parent}/{{{path.name},{path.name}}}",
    "glob": lambda path: f"{path.parent}/{path.name[:-4]}*",
    "up": lambda path: f"{path.parent}/../{path.parent.name}/{path.name}",
    "folder": lambda path: f"{path.parent}/",
    "all": lambda path: f"{path.parent}/**/*.tar",
    "list": lambda path: f"@{path.parent.parent}/list-{path.stem}",
}


@pytest.fixture(scope="module")
def spelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three tars, and one more with equal names."""
    folder = tmp_path_factory.mktemp("spelled").resolve()
    for name in ("0.tar", "1.tar", "2.tar"):
        touch(folder, f"data/{name}", f"other/{name}")
        (folder / f"list-{name[:-4]}").write_text(f"{folder}/data/{name}\n")
    (folder / "link").symlink_to("data")
    return folder


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    runs=st.lists(
        st.lists(st.tuples(st.sampled_from(list(SPELLINGS)), st.sampled_from("012")), min_size=1, max_size=3),
        min_size=1,
        max_size=4,
    ),
    add=st.integers(0, 4),
)
def test_every_key_has_one_row_however_its_tar_is_spelled(
    spelled: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    runs: list[list[tuple[str, str]]],
    add: int,
) -> None:
    """Runs on one output, each with its own spellings; before one of them a folder with equal names is added."""
    monkeypatch.chdir(spelled)
    monkeypatch.setenv("HOME", str(spelled))
    table = PromptTable(str(tmp_path_factory.mktemp("out")), {"steps": 1})
    wanted: set[str] = set()
    before: dict[str, str] = {}
    for number, run in enumerate(runs):
        patterns = [SPELLINGS[spelling](spelled / "data" / f"{stem}.tar") for spelling, stem in run]
        patterns += ["other"] if number >= add else []
        shards = expand_inputs(patterns, table.url)
        table.claim()
        done, left = table.divide(shards)
        table.record([*done, *left])
        for shard in left:
            table.publish(shard, [Row(shard.url, shard.url, "ok", similarity=0.5)], 1.0)
        wanted |= {shard.url for shard in shards}
        now = {shard.url: shard.stem for shard in table.shards()}
        assert before.items() <= now.items(), "a finished shard was renamed"
        assert not {shard.url for shard in left} & before.keys(), "a finished shard was repeated"
        before = now
    rows = [row["key"] for shard in table.shards() for row in table.read(shard).to_pylist()]
    assert sorted(rows) == sorted(wanted)


def test_a_shard_that_is_signed_anew_is_the_same_shard(tmp_path: Path) -> None:
    table = PromptTable(str(tmp_path), {"steps": 1})
    first, second = (
        expand_inputs([f"https://b.s3.amazonaws.com/{{0..1}}.tar?X-Amz-Date={n}&X-Amz-Signature=secret{n}"])
        for n in (1, 2)
    )
    assert [shard.source[-7:] for shard in second] == ["secret2", "secret2"]
    assert table.divide(first)[1] == first
    table.record(first)
    for shard in first:
        table.publish(shard, [Row("key", shard.url, "ok", similarity=0.5)], 1.0)
    assert table.divide(second) == (first, [])
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"secret" not in written


def test_tables_are_expanded_as_tars_are(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "0.parquet",
        "1.jsonl",
        "2.JSONL.gz",
        "3.tar",
        "4.csv",
        "5.txt",
        "6.xml",
        "_5.parquet",
        "deep/6.parquet",
    )
    left_out: Counter[str] = Counter()
    assert names(tmp_path, kind=TABLES, left_out=left_out) == ["0.parquet", "1.jsonl", "2.JSONL.gz", "4.csv", "5.txt"]
    assert left_out == {"files that are not .parquet, .jsonl, .csv, .tsv or .txt": 2}
    assert [unit.stem for unit in expand_inputs([str(tmp_path)], kind=TABLES)] == ["0", "1", "2", "4", "5"]
    assert names(tmp_path / "**/*.parquet", kind=TABLES) == ["0.parquet", "6.parquet"]
    assert names(tmp_path / "{0,1}.*", kind=TABLES) == ["0.parquet", "1.jsonl"]
    assert names(tmp_path / "4.csv", kind=TABLES) == ["4.csv"], "its bytes tell"
    (tmp_path / "list").write_text(f"{tmp_path}/1.jsonl\n")
    assert names(f"@{tmp_path}/list", kind=TABLES) == ["1.jsonl"]
    fs = fsspec.filesystem("memory")
    for name in ("a.parquet", "b.tar"):
        fs.pipe_file(f"/tables/{name}", b"x")
    assert names("memory://tables", kind=TABLES) == ["a.parquet"]


def test_what_another_job_wrote_is_input_where_tables_are_read(tmp_path: Path) -> None:
    write_output(tmp_path / "out")
    assert names(tmp_path / "out", kind=TABLES) == ["a.parquet"]
    with pytest.raises(UserError, match="matches only files in .*out, the output of a job"):
        names(tmp_path / "out", kind=TABLES, output=str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("kind", "pattern", "words"),
    [
        (TARS, "a.parquet", "is not a tar .*: a table of texts is read by: pez distill --input TABLE"),
        (TARS, "b.jsonl", "is not a tar"),
        (
            TARS,
            "c/",
            r"no tar in .*: found 1 x .jsonl.gz; expected .tar, .tar.gz or .tgz \(a table of texts is read by: pez",
        ),
        (TABLES, "d.tar.gz", "is not a table .*: a tar of images is read by: pez caption --input TAR"),
        (
            TABLES,
            "e/",
            r"no table in .*: found 1 x .tar; expected .parquet, .jsonl, .csv, .tsv or .txt \(a tar of images is read",
        ),
        (
            TABLES,
            "f/",
            r"no table in .*: found 1 x .xml; expected .* \(write them as JSON lines, one object per line\)",
        ),
        (TABLES, "gone.parquet", "no file .*; expected a table"),
        (TABLES, "gone-*", "no table matches"),
    ],
    ids=range(8),
)
def test_a_file_of_another_command_is_one_line_that_names_it(
    tmp_path: Path, kind: Kind, pattern: str, words: str
) -> None:
    touch(tmp_path, "a.parquet", "b.jsonl", "c/0.jsonl.gz", "d.tar.gz", "e/0.tar", "f/0.xml")
    with pytest.raises(UserError, match=words) as error:
        names(f"{tmp_path}/{pattern}", kind=kind)
    assert "\n" not in str(error.value)


def test_a_url_is_of_a_kind_by_its_path_alone() -> None:
    with pytest.raises(UserError, match="is not a tar"):
        names("https://host/a.parquet?X-Amz-Signature=secret")
    assert names("https://host/a.parquet?name=b.tar", kind=TABLES)
