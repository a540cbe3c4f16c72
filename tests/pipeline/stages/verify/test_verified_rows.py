"""Verification of a shard: the images generated from each prompt are compared with the original, whatever fails."""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
import webdataset as wds
from PIL import Image
from samples_on_disk import MakeTar, encoded
from verified_outputs import CAPTIONED, PROMPTS, SETTINGS, publish, rows_of, verified

from pez.demo import JUDGE
from pipeline.rows import SCHEMA, VERIFIED, Row
from pipeline.sources.base import Unit, UnitError
from pipeline.stages.verify import Verifier, verify_unit
from pipeline.table import PromptTable


class Wrapped:
    """A pipeline that does not like some prompts."""

    def __init__(self, pipeline: Any, likes: Callable[[str], bool]) -> None:
        self.pipeline, self.likes = pipeline, likes


class Raising(Wrapped):
    def __call__(self, prompt: list[str], **options: Any) -> Any:
        if not all(map(self.likes, prompt)):
            raise RuntimeError("this prompt\ncannot be painted")
        return self.pipeline(prompt=prompt, **options)


class Blanking(Wrapped):
    def __call__(self, prompt: list[str], **options: Any) -> Any:
        made = self.pipeline(prompt=prompt, **options)
        made.nsfw_content_detected = [not self.likes(text) for text in prompt]
        return made


@pytest.fixture
def troubled(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Verifier]:
    def trouble(kind: type[Wrapped], likes: Callable[[str], bool]) -> Verifier:
        monkeypatch.setattr(verifier.generators[0], "pipeline", kind(verifier.generators[0].pipeline, likes))
        return verifier

    return trouble


def test_rows_with_a_prompt_get_their_similarities(shard: Unit, table: PromptTable, verifier: Verifier) -> None:
    before = pq.read_table(f"{table.url}/a.parquet")
    report = verify_unit(shard, verifier, verified(table))
    after = pq.read_table(f"{table.url}/a.parquet")
    assert after.drop_columns(VERIFIED.names).equals(before.drop_columns(VERIFIED.names))
    assert after.schema.equals(before.schema)
    assert after.schema.metadata[b"pez"] == before.schema.metadata[b"pez"]
    assert json.loads(after.schema.metadata[b"pez-verify"])["generator"]["verify"] == "demo"
    for row in after.to_pylist():
        if row["key"] == "bad":
            assert row["regenerated_similarity"] is row["regenerated_similarities"] is row["regeneration"] is None
            continue
        made = row["regeneration"]
        assert len(set(made["seeds"])) == len(row["regenerated_similarities"]) == 2
        assert row["regenerated_similarity"] == pytest.approx(sum(row["regenerated_similarities"]) / 2)
        assert (made["model"], made["score_model"], made["steps"], made["guidance"]) == ("demo", "demo-judge", 1, 9.0)
        assert (made["scheduler"], made["blanked"], made["error"]) == ("dpm++", 0, None)
    assert (report.rows, report.scored, report.blanked, report.failures) == (3, 3, 0, [])
    assert json.loads(Path(f"{table.url}/_verified/a.json").read_text()) == dataclasses.asdict(report)


def test_similarities_can_be_recomputed_from_the_kept_images(
    shard: Unit, table: PromptTable, verifier: Verifier, images: list[Image.Image]
) -> None:
    verify_unit(shard, verifier, verified(table, keep_images=True))
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{JUDGE}")
    model.eval()
    kept = {s["__key__"]: s for s in wds.WebDataset(f"{table.url}/_regenerated/a.tar", shardshuffle=False)}
    assert list(kept) == ["000", "001", "002"]
    for row, original in zip((r for r in rows_of(table) if r["status"] == "ok"), images[:3], strict=True):
        sample = kept[row["key"]]
        assert sample["txt"].decode() == row["prompt"]
        compared = [original, *(Image.open(io.BytesIO(sample[f"{n}.png"])) for n in range(2))]
        with torch.no_grad():
            features = F.normalize(model.encode_image(torch.stack([preprocess(p) for p in compared])), dim=-1)
        assert (features[0] @ features[1:].T).tolist() == pytest.approx(row["regenerated_similarities"], abs=1e-4)


def test_originals_are_read_with_the_image_key_of_the_captioning_job(
    make_tar: MakeTar, images: list[Image.Image], tmp_path: Path, verifier: Verifier
) -> None:
    table = PromptTable(str(tmp_path / "left"), CAPTIONED | {"source": {"image_key": "left.png"}})
    table.claim()
    shard = Unit(make_tar("in/l.tar", [("0.right.png", encoded(images[1])), ("0.left.png", encoded(images[0]))]), "l")
    table.publish(shard, [Row("0", shard.url, "ok", prompt=PROMPTS[0])], 1.0)
    verify_unit(shard, verifier, verified(table))
    assert rows_of(table, "l")[0]["regeneration"]["error"] is None


def test_one_bad_prompt_does_not_stop_the_others(
    shard: Unit, table: PromptTable, troubled: Callable[..., Verifier]
) -> None:
    report = verify_unit(shard, troubled(Raising, lambda prompt: "square" not in prompt), verified(table))
    found = {row["key"]: row for row in rows_of(table)}
    assert found["001"]["regenerated_similarity"] is found["001"]["regenerated_similarities"] is None
    assert found["001"]["regeneration"]["error"] == "this prompt cannot be painted"
    assert len(found["001"]["regeneration"]["seeds"]) == 2
    assert found["000"]["regenerated_similarity"] is not None
    assert found["002"]["regenerated_similarity"] is not None
    assert (report.rows, report.scored) == (3, 2)
    assert report.failures == [{"key": "001", "reason": "this prompt cannot be painted"}]


def test_a_generator_that_fails_for_any_prompt_fails_the_shard(
    shard: Unit, table: PromptTable, troubled: Callable[..., Verifier]
) -> None:
    before = Path(f"{table.url}/a.parquet").read_bytes()
    with pytest.raises(UnitError, match="the generator demo fails: this prompt cannot be painted"):
        verify_unit(shard, troubled(Raising, lambda _: False), verified(table, keep_images=True))
    assert Path(f"{table.url}/a.parquet").read_bytes() == before
    assert not list(Path(table.url).glob("_[rv]*/*[!n]"))[1:]  # the report of the captions alone


def test_a_blanked_image_is_counted_and_not_scored(
    shard: Unit, table: PromptTable, troubled: Callable[..., Verifier]
) -> None:
    judge = troubled(Blanking, lambda prompt: "square" not in prompt)
    report = verify_unit(shard, judge, verified(table, keep_images=True))
    row = rows_of(table)[1]
    assert (row["regenerated_similarity"], row["regenerated_similarities"]) == (None, [None, None])
    assert (row["regeneration"]["blanked"], row["regeneration"]["error"]) == (2, None)
    assert (report.blanked, report.scored, report.rows) == (2, 2, 3)
    kept = wds.WebDataset(f"{table.url}/_regenerated/a.tar", shardshuffle=False)
    assert [sample["__key__"] for sample in kept] == ["000", "002"]


def test_an_image_that_left_the_shard_is_reported(
    shard: Unit, table: PromptTable, verifier: Verifier, make_tar: MakeTar, images: list[Image.Image]
) -> None:
    make_tar("in/a.tar", [("000.png", encoded(images[0])), ("002.png", encoded(images[2])[:99])])
    verify_unit(shard, verifier, verified(table))
    errors = {row["key"]: (row["regeneration"] or {}).get("error") for row in rows_of(table)}
    assert errors["000"] is None
    assert errors["001"] == "its image is no longer in the shard"
    assert str(errors["002"]).startswith("cannot decode the image")


@pytest.fixture
def exact_verifier() -> Verifier:
    """One whose generator computes in float64: in float32, some CPUs round another batch size differently."""
    exact = Verifier(SETTINGS, "demo")
    exact.generators[0].pipeline.to(torch.float64)
    return exact


def test_a_row_does_not_depend_on_other_rows(
    shard: Unit, table: PromptTable, exact_verifier: Verifier, make_tar: MakeTar, images: list[Image.Image]
) -> None:
    verify_unit(shard, exact_verifier, verified(table))
    alone = Unit(make_tar("in/b.tar", [("002.png", encoded(images[2]))]), "b")
    table.publish(alone, [Row("002", alone.url, "ok", prompt=PROMPTS[2])], 1.0)
    verify_unit(alone, exact_verifier, verified(table))
    [row] = rows_of(table, "b")
    assert row["regenerated_similarities"] == rows_of(table)[3]["regenerated_similarities"]


def test_missing_prompts_are_named(table: PromptTable, verifier: Verifier) -> None:
    with pytest.raises(UnitError, match="x.tar has no prompts in .*; run pez caption first"):
        verify_unit(Unit("x.tar", "x"), verifier, verified(table))


def test_every_parquet_has_one_schema_verified_or_not(
    shard: Unit, table: PromptTable, verifier: Verifier, make_tar: MakeTar
) -> None:
    """Also where no row has a prompt: a folder that is verified in part is one table."""
    empty = Unit(make_tar("in/b.tar", [("x.jpg", b"junk")]), "b")
    later = Unit(make_tar("in/c.tar", []), "c")
    table.publish(empty, [Row("x", empty.url, "bad_image", "cannot decode")], 1.0)
    publish(table, later, PROMPTS[:3])
    before = pq.read_schema(f"{table.url}/a.parquet")
    for each in (shard, empty):
        verify_unit(each, verifier, verified(table))
    schemas = [pq.read_schema(f"{table.url}/{stem}.parquet") for stem in "abc"]
    assert all(schema.equals(before) for schema in schemas)
    assert before.names == SCHEMA.names
    assert pa.types.is_struct(before.field("regeneration").type)
    whole = pa.concat_tables([pq.read_table(f"{table.url}/{stem}.parquet") for stem in "abc"])
    assert whole["regenerated_similarity"].null_count == 1 + 1 + 4  # bad, x, and all of c
