"""Every key of a tar becomes one sample, and a tar that is not whole is noticed."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from items import items_of
from PIL import Image
from samples_on_disk import MakeTar, encoded

from pipeline.settings import CaptionSettings
from pipeline.sources.base import LateCaption, UnitError

PICTURE = Image.new("RGB", (8, 6), (200, 30, 30))
BLUE = Image.new("RGB", (8, 6), "blue")
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
PNG, JPEG = encoded(PICTURE), encoded(PICTURE, "JPEG")


def read(path: str, **keys: Any) -> list[tuple[str, str, str | None]]:
    return [(s.key, s.status, s.caption) for s in items_of(path, **keys)]


def test_an_image_with_a_caption_is_one_sample(make_tar: MakeTar) -> None:
    tar = make_tar("a.tar", [("1.jpg", JPEG), ("1.txt", b" a cat \n"), ("2.png", PNG)])
    assert read(tar) == [("1", "ok", "a cat"), ("2", "ok", None)]


def test_a_key_without_an_image_says_what_was_found(make_tar: MakeTar) -> None:
    tar = make_tar("a.tar", [("1.txt", b"text"), ("2.jpg", JPEG), ("3.json", b"{}")])
    assert [(s.key, s.status, s.reason) for s in items_of(tar)] == [
        ("2", "ok", None),
        ("1", "no_image", "no image of this key; found a caption"),
        ("3", "no_image", "no image of this key; found json"),
    ]


def test_the_index_is_the_order_of_the_keys(make_tar: MakeTar) -> None:
    tar = make_tar("a.tar", [("1.txt", b"text"), ("2.jpg", JPEG), ("1.jpg", JPEG)])
    assert sorted((s.index, s.key) for s in items_of(tar)) == [(0, "1"), (1, "2")]


def test_parts_of_a_key_may_be_far_apart(make_tar: MakeTar) -> None:
    tar = make_tar("a.tar", [("1.txt", b"one"), ("2.txt", b"two"), ("1.jpg", JPEG), ("2.jpg", JPEG)])
    assert sorted(read(tar)) == [("1", "ok", "one"), ("2", "ok", "two")]


def test_dots_in_names_do_not_merge_samples(make_tar: MakeTar) -> None:
    tar = make_tar("a.tar", [("photo.1.jpg", JPEG), ("photo.2.jpg", JPEG), ("a.b/c.jpg", JPEG)])
    assert [key for key, _, _ in read(tar)] == ["photo.1", "photo.2", "a.b/c"]


def test_an_ending_of_two_parts_can_be_asked_for(make_tar: MakeTar) -> None:
    tar = make_tar("a.tar", [("1.left.jpg", JPEG), ("1.right.jpg", JPEG), ("1.txt", b"x")])
    assert read(tar, image_key="left.jpg")[0][:2] == ("1", "ok")


@pytest.mark.parametrize("image_key", ["jpg;png", ".jpg;.png", "JPG,PNG", "*.jpg; *.png", " .PNG ; jpg;"])
def test_several_endings_are_spelled_as_people_spell_them(make_tar: MakeTar, image_key: str) -> None:
    tar = make_tar("a.tar", [("1.jpg", JPEG), ("2.PNG", PNG), ("3.gif", JPEG), ("1.txt", b"x"), ("2.cap", b"y")])
    found = items_of(tar, late=True, image_key=image_key, caption_key="txt;.cap")
    assert {s.key: s.status for s in found if not isinstance(s, LateCaption)} == {"1": "ok", "2": "ok", "3": "no_image"}
    assert {s.key: s.caption for s in found if s.caption} == {"1": "x", "2": "y"}


@pytest.mark.parametrize(
    "keys",
    [{"image_key": ""}, {"image_key": ";"}, {"image_key": "."}, {"image_key": "json:image"}, {"caption_key": "json:"}],
)
def test_a_key_without_an_extension_is_refused_before_any_work(keys: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError,
        match="(image|caption)_key is '.*'; (expected an extension such as jpg|only captions can have a field)",
    ):
        CaptionSettings(**keys)


def test_a_key_without_the_named_image_says_which_was_expected_and_what_is_there(make_tar: MakeTar) -> None:
    tar = make_tar("a.tar", [("1.jpg", JPEG), ("1.cls", b"3"), ("1.jpeg", JPEG)])
    [sample] = items_of(tar, image_key="png;webp")
    assert sample.reason == "no image of this key, which would be .png or webp; found jpg, cls, jpeg"


@pytest.mark.parametrize(
    "ending",
    [
        *("jpg", "jpeg", "jpe", "jif", "jfif", "jfi", "pjpeg", "pjpg", "pjp", "mpo", "JPG", "JFIF", "Avif"),
        *("png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff", "avif"),
    ],
)
def test_every_usual_ending_of_images_is_one(make_tar: MakeTar, ending: str) -> None:
    assert read(make_tar("a.tar", [(f"1.{ending}", JPEG), ("1.txt", b"x")])) == [("1", "ok", "x")]


@pytest.mark.parametrize(
    ("value", "field", "caption"),
    [
        ({"caption": "a cat"}, "caption", "a cat"),
        ({"caption": " a cat\n", "url": "x"}, "caption", "a cat"),
        ({"meta": {"text": "a cat"}}, "meta.text", "a cat"),
        ({"meta.text": "a cat", "meta": {"text": "no"}}, "meta.text", "a cat"),
        ({"captions": ["a cat", "a pet"]}, "captions", "a cat"),
        ({"captions": [{"raw": "x"}, {"raw": "a cat"}]}, "captions.1.raw", "a cat"),
        ({"caption": "\ud83d\ude00 \ud800"}, "caption", "\N{GRINNING FACE} \N{REPLACEMENT CHARACTER}"),
        ({"caption": ""}, "caption", ""),
        ({"Alt Text": "a cat"}, "Alt Text", "a cat"),
    ],
)
def test_a_caption_may_be_a_field_of_json(make_tar: MakeTar, value: object, field: str, caption: str) -> None:
    tar = make_tar("a.tar", [("1.jpg", JPEG), ("1.json", json.dumps(value).encode())])
    assert read(tar, caption_key=f"json:{field}") == [("1", "ok", caption)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{}", "json without a text called 'caption'"),
        (b'{"caption": null}', "json without a text called 'caption'"),
        (b'{"caption": {"a": 1}}', "json without a text called 'caption'"),
        (b"[1]", "json without a text called 'caption'"),
        (b"", "json that cannot be read"),
        (b"{caption", "json that cannot be read"),
        (b"\xff\xfe\xfd", "json that cannot be read"),
        (b"[" * 200_000, "json that cannot be read"),
        (b'{"caption": "' + b"x" * (2**20 + 1) + b'"}', "caption of more than 1048576 bytes"),
    ],
    ids=range(9),
)
def test_json_without_the_caption_costs_the_caption_alone_and_is_counted(
    make_tar: MakeTar, data: bytes, reason: str
) -> None:
    tar = make_tar("a.tar", [("1.jpg", JPEG), ("1.json", data), ("2.json", data)])
    left_out: Counter[str] = Counter()
    found = items_of(tar, left_out, caption_key="json:caption")
    assert [(s.key, s.status, s.caption) for s in found] == [("1", "ok", None), ("2", "no_image", None)]
    assert left_out == {reason: 2}


def test_text_beside_json_is_taken_where_both_are_asked_for(make_tar: MakeTar) -> None:
    members = [("1.jpg", JPEG), ("1.json", b'{"caption": "of json"}'), ("2.jpg", JPEG), ("2.txt", b"of text")]
    assert read(make_tar("a.tar", members), caption_key="txt;json:caption") == [
        ("1", "ok", "of json"),
        ("2", "ok", "of text"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_caption_is_read_in_every_usual_encoding(make_tar: MakeTar, encoding: str) -> None:
    text = "a café: a cat, red \N{GRINNING FACE}"
    tar = make_tar(
        "a.tar",
        [
            ("1.jpg", JPEG),
            ("1.txt", f"{text}\r\n".encode(encoding)),
            ("2.jpg", JPEG),
            ("2.json", json.dumps({"caption": text}).encode(encoding)),
        ],
    )
    assert read(tar, caption_key="txt;json:caption") == [("1", "ok", text), ("2", "ok", text)]


def test_members_beside_an_image_make_no_key_of_their_own(make_tar: MakeTar) -> None:
    members = [
        ("__index__.json", b"{}"),
        ("a/photo.meta.json", b"{}"),
        ("a/photo.jpg", JPEG),
        ("a/photo.clip.emb.npy", b"x"),
    ]
    members += [("photo.1.jpg", JPEG), ("photo.2.jpg", JPEG), ("photo.1.json", b"{}"), ("last.json", b"{}")]
    members += [
        ("b/photo.meta.json", b"{}"),
        ("desktop.ini", b"x"),
        ("__x__.jpg", JPEG),
        ("photo.3.txt", b"no picture"),
    ]
    left_out: Counter[str] = Counter()
    found = items_of(make_tar("a.tar", members), left_out)
    assert [(s.key, s.status) for s in sorted(found, key=lambda s: s.index)] == [
        ("a/photo", "ok"),
        ("photo.1", "ok"),
        ("photo.2", "ok"),
        ("last", "no_image"),
        ("b/photo.meta", "no_image"),
        ("__x__", "ok"),
        ("photo.3", "no_image"),
    ]
    assert left_out == {"hidden, without an extension, or not a file": 1, "about the shard, like __index__.json": 1}


def test_a_file_about_the_shard_is_no_key_where_captions_are_in_json(make_tar: MakeTar) -> None:
    members = [
        ("__index__.json", b'{"n": 1}'),
        ("a/__meta__.json", b"{}"),
        ("1.jpg", JPEG),
        ("1.json", b'{"caption": "c"}'),
    ]
    members += [("__x__.json", b'{"caption": "of a picture"}'), ("__x__.jpg", JPEG)]
    assert read(make_tar("a.tar", members), caption_key="json:caption") == [
        ("1", "ok", "c"),
        ("__x__", "ok", "of a picture"),
    ]


def test_keys_can_be_split_at_the_first_dot_as_webdataset_does(make_tar: MakeTar) -> None:
    members = [
        ("d.x/1.input.jpg", JPEG),
        ("d.x/1.outputs.txt", b"out"),
        ("2.mask.png", PNG),
        ("2.jpg", JPEG),
        ("2.meta.json", b""),
    ]
    tar = make_tar("a.tar", members)
    found = items_of(tar, late=True, key_split="first")
    assert [(s.key, s.image, s.caption) for s in found] == [("d.x/1", JPEG, "out"), ("2", JPEG, None)]
    found = items_of(tar, late=True, image_key="mask.png", caption_key="outputs.txt", key_split="first")
    assert [(s.key, s.image, s.caption) for s in found] == [("d.x/1", None, "out"), ("2", PNG, None)]
    found = items_of(tar, late=True, image_key="input.jpg", caption_key="outputs.txt")
    assert (found[0].key, found[0].image, found[0].caption) == ("d.x/1", JPEG, "out")


def test_captions_far_from_their_images_come_after_them_and_are_bounded(
    make_tar: MakeTar, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [(f"{i}.jpg", JPEG) for i in range(6)] + [(f"{i}.txt", bytes([65 + i]) * 10) for i in (3, 0, 5, 1, 4, 2)]
    tar = make_tar("a.tar", members)
    found = items_of(tar, late=True)
    assert [s.key for s in found if isinstance(s, LateCaption)] == ["3", "0", "5", "1", "4", "2"]
    assert {s.index: s.caption for s in found if s.caption} == {i: chr(65 + i) * 10 for i in range(6)}
    monkeypatch.setattr("pipeline.sources.tars.MAX_WAITING_BYTES", 35)
    for order in (members, [*members[6:], *members[:6]]):
        left_out: Counter[str] = Counter()
        found = items_of(make_tar("a.tar", order), left_out, late=True)
        assert sum(1 for s in found if not isinstance(s, LateCaption)) == 6
        assert left_out == {
            "captions away from their images, above 35 bytes together": 6 - len([s for s in found if s.caption])
        }
        assert 3 <= len([s for s in found if s.caption]) <= 4


def test_only_the_named_endings_are_read(make_tar: MakeTar) -> None:
    tar = make_tar("a.tar", [("1.jpg", b"not this"), ("1.png", PNG), ("1.txt", b"not this"), ("1.cap", b"this")])
    assert read(tar, image_key="png", caption_key="cap") == [("1", "ok", "this")]


def test_the_same_key_twice_is_one_sample(make_tar: MakeTar) -> None:
    tar = make_tar("a.tar", [("1.jpg", JPEG), ("1.JPG", JPEG), ("2.jpg", JPEG), ("1.jpg", b"again")])
    assert [key for key, _, _ in read(tar)] == ["1", "2"]


def test_hidden_files_and_names_without_an_ending_are_no_samples(make_tar: MakeTar) -> None:
    tar = make_tar("a.tar", [(".DS_Store", b"x"), ("README", b"x"), ("1.jpg", JPEG), ("a/._1.jpg", b"x")])
    assert read(tar) == [("1", "ok", None)]


def test_names_of_any_bytes_become_keys(make_tar: MakeTar) -> None:
    tar = make_tar("a.tar", [("日本/é<b>.jpg", JPEG), ("x" * 300 + ".jpg", JPEG), ("../up.jpg", JPEG)])
    assert [key for key, _, _ in read(tar)] == ["日本/é<b>", "x" * 300, "../up"]


def test_a_compressed_tar_is_read(make_tar: MakeTar, tmp_path: Path) -> None:
    tar = make_tar("a.tar", [("1.jpg", JPEG), ("2.jpg", JPEG)])
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress(Path(tar).read_bytes()))
    assert [key for key, _, _ in read(str(packed))] == ["1", "2"]


@pytest.mark.parametrize("keep", [1, 100, 512, 700, 1024, 1024 + 512, 2048 + 100])
def test_a_tar_cut_short_is_noticed_wherever_it_ends(make_tar: MakeTar, keep: int) -> None:
    tar = make_tar("a.tar", [(f"{i}.png", PNG) for i in range(3)])  # a header and a block each
    assert len(PNG) <= 512
    Path(tar).write_bytes(Path(tar).read_bytes()[:keep])
    with pytest.raises(UnitError, match="a.tar"):
        read(tar)


def test_a_damaged_header_in_the_middle_is_noticed(make_tar: MakeTar) -> None:
    tar = make_tar("a.tar", [(f"{i}.png", PNG) for i in range(3)])
    data = bytearray(Path(tar).read_bytes())
    data[1024 + 10 : 1024 + 200] = b"x" * 190
    Path(tar).write_bytes(bytes(data))
    with pytest.raises(UnitError, match="is damaged or truncated after 1024 bytes; make or copy it again"):
        read(tar)


@pytest.mark.parametrize("content", [b"", b"\0" * 700, b"<html>not found</html>" * 100])
def test_what_is_not_a_tar_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UnitError, match="a.tar"):
        read(str(tmp_path / "a.tar"))


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    for url in (str(tmp_path / "gone.tar"), "memory://gone.tar"):
        with pytest.raises(UnitError, match="cannot read .*gone.tar: .*[Nn]o such file"):
            read(url)
