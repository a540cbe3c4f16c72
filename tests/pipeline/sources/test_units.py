import sys
from pathlib import Path

import fsspec  # noqa: F401 - its registry
import pytest

from pez.errors import UserError
from pipeline.sources.inputs import expand_inputs
from pipeline.table import PromptTable


def urls(*patterns: str) -> list[str]:
    return [shard.url for shard in expand_inputs(patterns)]


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    for name in ("a-00.tar", "a-01.tar", "a-02.tar", "notes.txt"):
        (tmp_path / name).touch()
    return tmp_path


def test_braces_globs_folders_and_lists_name_the_same_shards(tars: Path) -> None:
    (tars / "list").write_text(f"# two\n{tars}/a-00.tar\n\n{tars}/a-{{01..02}}.tar\n")
    expected = [f"{tars}/a-0{i}.tar" for i in range(3)]
    for pattern in (f"{tars}/a-{{00..02}}.tar", f"{tars}/a-*.tar", str(tars), f"@{tars}/list"):
        assert urls(pattern) == expected, pattern


def test_an_address_counts_once(tars: Path) -> None:
    assert len(urls(f"{tars}/a-00.tar", f"{tars}/*.tar")) == 3


def test_braces_expand_without_asking_a_store() -> None:
    shards = expand_inputs(["s3://bucket/x/{00000..00002}.tar"])
    assert [s.stem for s in shards] == ["00000", "00001", "00002"]


def test_equal_names_in_two_folders_get_stems_of_their_own(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.tar").touch()
    stems = [s.stem for s in expand_inputs([str(tmp_path / "x"), str(tmp_path / "y")])]
    assert len(set(stems)) == 2
    assert all(stem.startswith("0-") for stem in stems)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("{}/*.zip", "no tar matches"),
        ("{}/gone.tar", "no file .*gone.tar; expected a tar"),
        ("{}/gone-{{0..3}}.tar", "no file .*gone-0.tar"),
        ("@{}/gone", "cannot read the list of inputs"),
        ("ftpx://host/a.tar", "not a protocol that fsspec knows"),
        ("pipe:cat a.tar", "would run a shell command"),
    ],
)
def test_what_cannot_be_read_is_said_before_work(tars: Path, pattern: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        urls(pattern.format(tars))


@pytest.mark.parametrize(
    ("address", "package", "extra"),
    [
        ("gs://bucket/{0..1}.tar", "gcsfs", "gs"),
        ("hf://datasets/org/name/*.tar", "huggingface_hub", "hf"),
        ("s3a://bucket/0.tar", "s3fs", "s3"),
    ],
)
def test_a_missing_driver_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, address.split(":")[0], raising=False)
    words = rf"driver for {address.split(':')[0]}:// is missing .*{package}.*; pip install -e '.\[{extra}\]'"
    for use in (expand_inputs, lambda patterns: PromptTable(patterns[0], {})):
        with pytest.raises(UserError, match=words) as error:
            use([address])
        assert "\n" not in str(error.value)


def test_hugging_face_addresses_are_shards() -> None:
    shards = expand_inputs(["hf://datasets/org/name@main/data/{00..02}.tar"])
    assert [s.url for s in shards] == [f"hf://datasets/org/name/data/0{i}.tar" for i in range(3)]
    assert [s.source for s in shards] == [f"hf://datasets/org/name@main/data/0{i}.tar" for i in range(3)]
    assert [s.stem for s in shards] == ["00", "01", "02"]


def test_no_input_is_an_error() -> None:
    with pytest.raises(UserError, match="no input given"):
        urls()
