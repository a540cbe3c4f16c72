"""What the reports of a job say together."""

from collections.abc import Iterator

from pipeline.rows import Row, ShardReport, report_of
from pipeline.sources.base import Unit
from pipeline.summary import nothing_learned, without_picture


def report(stem: str, *found: str, ok: int = 0, bad: int = 0) -> ShardReport:
    rows = [Row(f"n{i}", stem, "no_image", f"no image of this key; found {names}") for i, names in enumerate(found)]
    rows += [Row(f"b{i}", stem, "bad_image", "cannot decode the image: cut") for i in range(bad)]
    rows += [Row(f"o{i}", stem, "ok", prompt="a cat", similarity=0.5) for i in range(ok)]
    return report_of(Unit(stem, stem), rows, 1.0, "f")


def test_keys_without_a_picture_are_told_in_one_line_with_what_they_have() -> None:
    reports = [
        report("a", "json, npy", "json", ok=3),
        report("b", "json, cls", "a caption", "a link to /x/y.jpg", bad=1),
    ]
    line = "5 keys have no picture: extensions json, npy, cls, captions alone, links"
    assert without_picture(reports) == line
    assert without_picture([report("a", "json")]) == "1 key has no picture: extensions json"
    assert without_picture([report("a", ok=1)]) is None


def test_many_keys_without_a_picture_are_counted_beyond_the_reasons_that_a_report_keeps() -> None:
    assert without_picture([report("a", *["json"] * 1000)]) == "1000 keys have no picture: extensions json"


def test_a_job_with_one_prompt_is_no_job_without_and_no_further_report_is_read() -> None:
    def reports() -> Iterator[ShardReport]:
        yield report("a", "json")
        yield report("b", ok=1)
        raise AssertionError("read on")

    assert nothing_learned(reports()) is None
    assert nothing_learned([]) is None


def test_a_job_without_a_prompt_says_what_was_found_instead() -> None:
    assert nothing_learned([report("a", "jpg", "jpg, json"), report("b", bad=2)]) == (
        "not one image was captioned: 2 bad_image; 2 keys have no picture: extensions jpg, json; "
        "the first: cannot decode the image: cut; check --image-key"
    )
