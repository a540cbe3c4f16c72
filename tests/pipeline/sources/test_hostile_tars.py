"""The law of the rows: whatever a tar holds, each of its keys is one sample, or the whole shard is one error."""

import bz2
import gzip
import io
import lzma
import pickle
import re
import subprocess
import tarfile
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from items import items_of
from random_tars import END, FORMATS, JPEG, MEMBERS, PICTURE, PNG, Member, expected_keys, has_image, packed
from samples_on_disk import MakeTar, encoded

from pez.errors import UserError
from pipeline.sources.base import Item, UnitError
from pipeline.sources.inputs import expand_inputs


def samples(data: bytes, name: str = "a.tar") -> list[Item]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(data)
        return items_of(str(path))


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info.tobuf(tarfile.GNU_FORMAT)


def pax(**values: str) -> bytes:
    records = b""
    for name, value in values.items():
        record = f" {name.replace('__', '.')}={value}\n".encode("utf-8", "surrogateescape")
        length = len(record) + 1
        while length != len(record) + len(str(length)):
            length += 1
        records += str(length).encode() + record
    return header("pax", len(records), tarfile.XHDTYPE) + records + b"\0" * (-len(records) % 512)


def check_law(found: list[Item], members: list[Member]) -> None:
    keys = expected_keys(members)
    assert [s.key for s in sorted(found, key=lambda s: s.index)] == keys
    assert len({s.index for s in found}) == len(keys)
    for sample in found:
        assert (sample.status == "ok") == (sample.image is not None) == (sample.reason is None)
        assert (sample.status == "ok") == has_image(members, sample.key)
        for text in (sample.key, sample.caption, sample.reason):
            (text or "").encode()  # a table takes it


LAW = settings(
    deadline=None, max_examples=150, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)


@LAW
@given(members=MEMBERS, form=FORMATS, compressed=st.booleans())
def test_every_key_of_any_tar_is_one_sample(members: list[Member], form: int, compressed: bool) -> None:
    data = packed(members, form)
    check_law(samples(gzip.compress(data) if compressed else data), members)


@LAW
@given(
    members=MEMBERS,
    form=FORMATS,
    share=st.floats(0, 1),
    cut_to=st.sampled_from([1, 512, 512]),
    compressed=st.booleans(),
)
def test_a_tar_cut_anywhere_is_an_error_or_whole(
    members: list[Member], form: int, share: float, cut_to: int, compressed: bool
) -> None:
    data = packed(members, form)
    stored = gzip.compress(data) if compressed else data
    cut = stored[: int(share * len(stored)) // cut_to * cut_to]
    try:
        found = samples(cut)
    except UnitError as error:
        assert cut != stored
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert cut == stored, "a tar without its end is not known to be whole"
        check_law(found, members)


@LAW
@given(
    members=MEMBERS.filter(len),
    form=FORMATS,
    changes=st.lists(st.tuples(st.integers(0), st.binary(min_size=1, max_size=4)), max_size=3),
)
def test_flipped_bytes_raise_nothing_but_a_failed_shard(
    members: list[Member], form: int, changes: list[tuple[int, bytes]]
) -> None:
    data = bytearray(packed(members, form))
    for at, new in changes:
        at %= len(data) - len(new)
        data[at : at + len(new)] = new
    try:
        found = samples(bytes(data))
    except UnitError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert len({s.key for s in found}) == len(found)


# Particular tars.


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (header("a.jpg", 2**80) + PNG.ljust(512, b"\0") + END, r"it ends after \d+ bytes, inside a member"),
        (header("a.jpg", 8 * 2**30 - 1) + END, "it ends after"),
        (pax(size="-1") + header("a.jpg", 512) + b"x" * 512 + END, "is truncated inside 'a.jpg'"),
        (pax(size="9" * 30) + header("a.jpg", 512) + b"x" * 512 + END, "it ends after"),
        (pax(comment="x") * 2000 + header("a.jpg", 0) + END, "is not a tar, or damaged"),
        (header("x", 2**31, tarfile.GNUTYPE_LONGNAME) + END, "a header of 2147483648 bytes; expected at most"),
        (pax(comment="x" * 2**20) * 3 + header("a.jpg", 0) + END, r"a header of \d+ bytes; expected at most"),
        (pax(GNU__sparse__map="0,1,x") + header("a.jpg", 0) + END, "is not a tar, or damaged"),
        (2 * (header("a.jpg", 0) + END), r"is damaged or truncated after \d+ bytes"),  # cat a.tar b.tar
        (gzip.compress(header("a.jpg", 0) + END)[:-12], "cannot read"),
        (gzip.compress(header("a.jpg", 0) + END)[:20] + b"\xff" * 40, "not a tar, or damaged|cannot read"),
        (gzip.compress(header("a.jpg", 0)) + gzip.compress(END) + b"junk", "cannot read"),
    ],
    ids=range(12),
)
@pytest.mark.parametrize("before", [b"", header("0.jpg", 0)], ids=["first", "later"])
def test_headers_that_lie_end_in_one_line_and_soon(data: bytes, words: str, before: bytes) -> None:
    if data[:2] == b"\x1f\x8b":
        before = gzip.compress(before) if before else before
    with pytest.raises(UnitError, match=words) as error:
        samples(before + data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "key"),
    [("a\0b\nc.jpg", "a\0b\nc"), ("\udcff\udcfe.jpg", r"\xff\xfe"), ("x" * 20_000 + ".jpg", "x" * 20_000)],
    ids=["control characters", "not UTF-8", "very long"],
)
def test_odd_names_are_kept_apart_as_keys(name: str, key: str) -> None:
    data = pax(path=name) + header("z.jpg", 0) + END
    assert [s.key for s in samples(data)] == [key]


def test_two_names_that_are_not_utf8_are_two_keys() -> None:
    data = b"".join(pax(path=name) + header("z.jpg", 0) for name in ("\udcff.jpg", "\udcfe.jpg")) + END
    assert [s.key for s in samples(data)] == [r"\xff", r"\xfe"]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_long_name_in_either_spelling_is_a_key(form: int) -> None:
    name = "folder/" * 40 + "é" * 300
    assert [s.key for s in samples(packed([(f"{name}.jpg", tarfile.REGTYPE, JPEG)], form))] == [name]


@pytest.mark.parametrize("attribute", ["LIBARCHIVE.xattr.com.apple.ResourceFork", "SCHILY.xattr.user.x", "VENDOR.any"])
def test_attributes_of_a_megabyte_before_a_picture_cost_nothing(attribute: str) -> None:
    record = pax(**{attribute.replace(".", "__"): "A\n=1" * 2**18})  # with what looks like records in it
    data = b"".join(record + header(f"{i}.jpg", len(PNG)) + PNG.ljust(512, b"\0") for i in range(3)) + END
    assert [(s.key, s.image) for s in samples(data)] == [(str(i), PNG) for i in range(3)]


WHOLE = header("a.jpg", len(PNG)) + PNG.ljust(512, b"\0") + header("b.png", len(PNG)) + PNG.ljust(512, b"\0")


@pytest.mark.parametrize(
    "data",
    [WHOLE, WHOLE + bytes(512), WHOLE + bytes(100), WHOLE[: len(PNG) - 512], gzip.compress(WHOLE)],
    ids=["no end", "half an end", "odd end", "no padding", "compressed"],
)
def test_a_tar_that_nobody_finished_says_how_to_make_it_whole_and_can_be_allowed(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    words = r"ends after \d+ bytes, after a complete member .*, and --allow-unfinished-tars accepts it as it is"
    with pytest.raises(UnitError, match=words) as error:
        items_of(str(path))
    allowed = items_of(str(path), allow_unfinished_tars=True)
    assert [(s.key, s.image) for s in allowed] == [("a", PNG), ("b", PNG)]
    command = str(error.value).partition("nothing is missing, ")[2].partition(" completes it")[0]
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    assert items_of(str(tmp_path / "whole.tar")) == allowed


@pytest.mark.parametrize("cut", [len(WHOLE) - 600, len(WHOLE) - 512 - 100, 1024 + 300, 100])
def test_an_unfinished_tar_is_allowed_only_behind_a_whole_member(tmp_path: Path, cut: int) -> None:
    (tmp_path / "a.tar").write_bytes(WHOLE[:cut])
    with pytest.raises(UnitError, match="a.tar"):
        items_of(str(tmp_path / "a.tar"), allow_unfinished_tars=True)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.jpg", JPEG)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "what", "advice"),
    [
        (JPEG, "an image (JPEG)", "tar cf photos.tar photos"),
        (PNG, "an image (PNG)", "tar cf photos.tar photos"),
        (encoded(PICTURE, "GIF"), "an image (GIF)", "tar cf"),
        (encoded(PICTURE, "WEBP"), "an image (WEBP)", "tar cf"),
        (encoded(PICTURE, "TIFF"), "an image (TIFF)", "tar cf"),
        (b"PAR1" + bytes(900), "a Parquet table", "--input-kind table"),
        (zipped(), "a ZIP archive", "unpack it"),
        (b"%PDF-1.7\n" + b"x" * 900, "a PDF", "tar cf images.tar images"),
        (b"7z\xbc\xaf\x27\x1c" + b"x" * 900, "a 7z archive", "unpack it"),
        (b"Rar!\x1a\x07\0" + b"x" * 900, "a RAR archive", "unpack it"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 900, "compressed with zstd", "zstd -d"),
        (bz2.compress(WHOLE + END), "compressed with bzip2", "bunzip2"),
        (lzma.compress(WHOLE + END), "compressed with xz", "xz -d"),
        (lzma.compress(WHOLE + END, format=lzma.FORMAT_ALONE), "compressed with lzma", "xz -d"),
        (gzip.compress(gzip.compress(WHOLE + END)), "compressed with gzip twice", "gunzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a git-lfs pointer", "git lfs pull"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
@pytest.mark.parametrize("inside_gzip", [False, True])
def test_what_is_no_tar_is_named_and_not_tried_again(data: bytes, what: str, advice: str, inside_gzip: bool) -> None:
    if inside_gzip and data[:2] != b"\x1f\x8b":
        data, what = gzip.compress(data), f"gzip, and inside {what}"
    with pytest.raises(
        UnitError, match=f"a.tar is (gzip, and inside )?{re.escape(what)}.*, not a tar: .*{advice}"
    ) as error:
        samples(data)
    assert error.value.permanent
    again = pickle.loads(pickle.dumps(error.value))
    assert (str(again), again.permanent) == (str(error.value), True)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            b"<!DOCTYPE html><html><head><title>Sign\nin</title>" + b"x" * 900,
            r"an HTML page \(Sign in\) instead of the file",
        ),
        (
            b"<?xml version='1.0'?>\n<Error><Code>AccessDenied</Code><RequestId>1",
            "a store's error, AccessDenied, .*credentials",
        ),
        (b'{"error": "gated"}', "JSON, not a tar"),
        (b"", "is empty, not a tar: copy or make it again"),
    ],
    ids=range(4),
)
def test_what_a_server_gives_in_place_of_a_file_is_named_and_tried_again(data: bytes, words: str) -> None:
    with pytest.raises(UnitError, match=words) as error:
        samples(data)
    assert not error.value.permanent


@pytest.mark.parametrize("name", ["BM.jpg", "PK.jpg", "II.jpg", "%PDF-.jpg", "PAR1.jpg", "{a.jpg"])
def test_a_tar_whose_first_name_begins_as_something_else_is_a_tar(name: str) -> None:
    assert [s.image for s in samples(packed([(name, tarfile.REGTYPE, PNG)], tarfile.GNU_FORMAT))] == [PNG]


def test_a_compressed_tar_may_come_in_pieces() -> None:
    assert [s.key for s in samples(gzip.compress(header("a.jpg", 0)) + gzip.compress(END))] == ["a"]


def test_what_is_left_out_is_counted(make_tar: MakeTar) -> None:
    tar = make_tar(
        "a.tar",
        [
            ("1.jpg", JPEG),
            ("1.png", PNG),
            ("1.txt", b"first"),
            ("1.text", b"second"),
            ("2.jpg", JPEG),
            ("1.jpg", b"again"),
            ("3.jpg", JPEG),
            ("3.txt", b"x" * (2**20 + 1)),
            ("._3.jpg", b"mac"),
            ("README", b"read me"),
        ],
    )
    left_out: Counter[str] = Counter()
    found = items_of(tar, left_out)
    assert [(s.key, s.image, s.caption) for s in found] == [("1", JPEG, "first"), ("2", JPEG, None), ("3", JPEG, None)]
    assert left_out == {
        "another image of its key": 1,
        "another caption of its key": 1,
        "of a key that was done": 1,
        "caption of more than 1048576 bytes": 1,
        "hidden, without an extension, or not a file": 2,
    }


def test_a_link_is_a_key_without_an_image(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(JPEG)
    data = header("a.jpg", 0, tarfile.SYMTYPE, str(secret)) + header("b.jpg", 0, tarfile.LNKTYPE, "a.jpg") + END
    assert [(s.key, s.image, s.reason) for s in samples(data)] == [
        ("a", None, f"no image of this key; found a link to {secret}"),
        ("b", None, "no image of this key; found a link to a.jpg"),
    ]


def test_a_sparse_file_is_not_read() -> None:
    data = (
        pax(GNU__sparse__map="0,0", GNU__sparse__size="1000000000000") + header("a.jpg", 0) + header("b.jpg", 0) + END
    )
    assert [(s.key, s.status) for s in samples(data)] == [("a", "bad_image"), ("b", "ok")]


def test_names_are_never_paths(make_tar: MakeTar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = tmp_path / "work" / "ing"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    names = [
        "../up.jpg",
        "../../../../../../tmp/pez-escaped.jpg",
        f"{tmp_path}/absolute.jpg",
        "./dot.jpg",
        "~/home.jpg",
    ]
    tar = make_tar("a.tar", [(name, JPEG) for name in names])
    before = sorted(tmp_path.rglob("*"))
    assert [s.key for s in items_of(tar)] == [name.removesuffix(".jpg") for name in names]
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/pez-escaped.jpg").exists()


def test_a_pickle_in_a_tar_is_never_loaded(make_tar: MakeTar, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "loaded",)  # type: ignore[return-value]

    trap = pickle.dumps(Trap())
    tar = make_tar("a.tar", [("1.pkl", trap), ("1.pyd", trap), ("1.jpg", trap), ("2.txt", trap), ("2.pth", trap)])
    assert [s.key for s in items_of(tar)] == ["1", "2"]
    assert not (tmp_path / "loaded").exists()
    pickle.loads(trap)
    assert (tmp_path / "loaded").exists(), "the trap works"


@pytest.mark.parametrize("pattern", ["pipe:touch {}", "{{pipe:touch {},x.tar}}", "@{}.list"])
def test_an_address_that_runs_a_command_is_refused(tmp_path: Path, pattern: str) -> None:
    trace = tmp_path / "trace"
    Path(f"{trace}.list").write_text(f"pipe:touch {trace}\n")
    with pytest.raises(UserError, match="would run a shell command"):
        expand_inputs([pattern.format(trace)])
    assert not trace.exists()
