"""Verification of a shard: every prompt's pictures compared with the original, whatever happens on the way."""

import dataclasses
import io
import json
import shutil
import sys
import tarfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
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
from rich.console import Console
from safetensors.torch import load_file, save_file
from samples_on_disk import MakeTar, encoded
from small_generators import linked, rename_weights

import pez
from jobs import caption, command, verify
from pez.demo import JUDGE
from pez.errors import UserError
from pipeline.errors import OutputError
from pipeline.progress import JobProgress, prompt_table
from pipeline.rows import SCHEMA, VERIFIED, Row
from pipeline.run.serial import run_serially
from pipeline.run.tasks import tasks_of
from pipeline.settings import CaptionSettings, VerifySettings
from pipeline.sources.base import Unit, UnitError
from pipeline.sources.units import name_units
from pipeline.stages.learn import describe
from pipeline.stages.verified_table import VerifiedTable, VerifyReport
from pipeline.stages.verify import (
    Verifier,
    check_verification,
    resolved,
    score_model,
    verified_table,
    verify_unit,
)
from pipeline.stages.verify_stage import VerifyWorker
from pipeline.table import PromptTable

SETTINGS = VerifySettings(verify="demo", verify_steps=1, verify_images=2)
CAPTIONED = describe(CaptionSettings(model="demo", lanes=16), pez.PezSettings(tokens=6, steps=20), "cpu")
PROMPTS = ["yellow triangle wavy", "blue square", "pink heart top left", "purple ring"]


@pytest.fixture(scope="module")
def verifier() -> Verifier:
    return Verifier(SETTINGS, "demo")


@pytest.fixture
def exact_verifier() -> Verifier:
    """One whose generator computes in float64: in float32, some CPUs round another batch size differently."""
    exact = Verifier(SETTINGS, "demo")
    exact.generator.pipeline.to(torch.float64)
    return exact


@pytest.fixture
def table(tmp_path: Path) -> PromptTable:
    table = PromptTable(str(tmp_path / "out"), CAPTIONED)
    table.claim()
    return table


@pytest.fixture
def shard(make_tar: MakeTar, images: list[Image.Image], table: PromptTable) -> Unit:
    """Three captioned pictures, and a row without a prompt in their midst."""
    members = [(f"{i:03d}.png", encoded(images[i])) for i in range(3)]
    members.insert(2, ("bad.jpg", b"junk"))
    shard = Unit(make_tar("in/a.tar", members), "a")
    publish(table, shard, PROMPTS[:3])
    return shard


def publish(table: PromptTable, shard: Unit, prompts: list[str]) -> None:
    rows = [Row(f"{i:03d}", shard.url, "ok", prompt=p, similarity=0.5, seed=0) for i, p in enumerate(prompts)]
    rows.insert(2, Row("bad", shard.url, "bad_image", "cannot decode the image"))
    table.publish(shard, rows, 1.0)


def verified(table: PromptTable, **changes: Any) -> VerifiedTable:
    return verified_table(table, dataclasses.replace(SETTINGS, **changes), "cpu")


def rows_of(table: PromptTable, stem: str = "a") -> list[dict[str, Any]]:
    return pq.read_table(f"{table.url}/{stem}.parquet").to_pylist()


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
        monkeypatch.setattr(verifier.generator, "pipeline", kind(verifier.generator.pipeline, likes))
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


def test_anyone_recomputes_the_similarity_from_the_kept_pictures(
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
        pictures = [original, *(Image.open(io.BytesIO(sample[f"{n}.png"])) for n in range(2))]
        with torch.no_grad():
            features = F.normalize(model.encode_image(torch.stack([preprocess(p) for p in pictures])), dim=-1)
        assert (features[0] @ features[1:].T).tolist() == pytest.approx(row["regenerated_similarities"], abs=1e-4)


def test_a_verified_shard_is_not_done_again(shard: Unit, table: PromptTable, verifier: Verifier) -> None:
    report = verify_unit(shard, verifier, verified(table))
    assert verified(table).pending([shard]) == []
    Path(shard.url).unlink()
    assert verify_unit(shard, verifier, verified(table)) == report


def test_columns_without_the_marker_are_made_again(shard: Unit, table: PromptTable, verifier: Verifier) -> None:
    verify_unit(shard, verifier, verified(table))
    before = Path(f"{table.url}/a.parquet").read_bytes()
    Path(f"{table.url}/_verified/a.json").unlink()  # as after a crash between the two
    assert verified(table).pending([shard]) == [shard]
    verify_unit(shard, verifier, verified(table))
    assert Path(f"{table.url}/a.parquet").read_bytes() == before


def test_a_marker_without_the_columns_does_not_count(shard: Unit, table: PromptTable, verifier: Verifier) -> None:
    verify_unit(shard, verifier, verified(table))
    publish(table, shard, PROMPTS[1:])  # captioned again
    assert verified(table).pending([shard]) == [shard]
    verify_unit(shard, verifier, verified(table))
    assert rows_of(table)[0]["regenerated_similarity"] is not None


def test_pictures_wanted_later_are_made(shard: Unit, table: PromptTable, verifier: Verifier) -> None:
    verify_unit(shard, verifier, verified(table))
    before = rows_of(table)
    assert verified(table, keep_images=True).pending([shard]) == [shard]
    verify_unit(shard, verifier, verified(table, keep_images=True))
    assert rows_of(table) == before
    assert verified(table, keep_images=True).pending([shard]) == []


def test_other_settings_are_refused_and_named(shard: Unit, table: PromptTable, verifier: Verifier) -> None:
    verified(table).claim()
    verified(table, verify_batch=3, keep_images=True).claim()  # change no number
    verify_unit(shard, verifier, verified(table))
    with pytest.raises(
        UserError, match="verified with other settings: guidance was 9.0 and is 7.5, verify_steps was 1 and is 2; use"
    ):
        verified(table, guidance=7.5, verify_steps=2)


def test_settings_without_a_verified_shard_may_be_claimed_anew(
    shard: Unit, table: PromptTable, verifier: Verifier
) -> None:
    """As those of a run whose generator did not load."""
    slower = verified(table, guidance=7.5)
    slower.claim()
    verified(table).claim()
    with pytest.raises(OutputError, match="claimed by another run with different settings of verification"):
        verify_unit(shard, verifier, slower)  # what it has painted is not mixed with the others
    assert rows_of(table)[0]["regeneration"] is None
    verify_unit(shard, verifier, verified(table))
    assert verified(table).pending([shard]) == []


def test_a_generator_that_does_not_load_claims_nothing(
    scene_tars: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights of another shape are found out when they are loaded only."""
    broken = linked(tmp_path / "broken")
    weights = broken / "text_encoder" / "model.safetensors"
    tensors = {name: value[:1].contiguous() for name, value in load_file(weights).items()}
    weights.unlink()
    save_file(tensors, weights)
    out = tmp_path / "out"
    captions = ["--input", scene_tars[0], "--model", "demo", "--steps", "2", "--swaps", "0", "--local"]
    statuses = []
    for name, words in (
        ("caption", ["--output", str(out), *captions, "--verify", str(broken)]),
        ("verify", [str(out), "--verify", str(broken), "--local"]),
        ("verify", [str(out), "--verify", "demo", "--verify-steps", "1", "--local"]),
    ):
        monkeypatch.setattr(sys, "argv", ["job", *words])
        statuses.append(run(name))
    told = capsys.readouterr()
    assert statuses == [2, 2, 0]
    assert told.err.count("cannot load the generator") == 2
    assert len(told.err.strip().splitlines()) == 2
    assert json.loads((out / "_verify.json").read_text())["settings"]["generator"]["verify"] == "demo"


def test_a_damaged_marker_is_made_again(shard: Unit, table: PromptTable, verifier: Verifier) -> None:
    verify_unit(shard, verifier, verified(table))
    marker = Path(f"{table.url}/_verified/a.json")
    good = json.loads(marker.read_text())
    marker.write_text(json.dumps(good | {"of_a_later_version": 1}))
    assert verified(table).pending([shard]) == []
    for data in ("", "{", "[]", "{}", json.dumps({k: v for k, v in good.items() if k != "rows"})):
        marker.write_text(data)
        assert verified(table).pending([shard]) == [shard]
    verify_unit(shard, verifier, verified(table))
    assert json.loads(marker.read_text()).keys() == good.keys()


def test_a_variant_is_told_only_where_it_is_other_weights(table: PromptTable, tmp_path: Path) -> None:
    alone = rename_weights(linked(tmp_path / "alone"), "fp16", "unet", "vae", "text_encoder")
    both = linked(tmp_path / "both")
    plain = both / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(plain, plain.with_name("diffusion_pytorch_model.fp16.safetensors"))

    def told(folder: Path, variant: str | None) -> VerifiedTable:
        return verified(table, verify=str(folder), verify_variant=variant)

    assert "verify_variant" not in told(both, None).settings["generator"]
    assert told(both, "fp16").settings["generator"]["verify_variant"] == "fp16"
    assert told(alone, "fp16").fingerprint == told(alone, None).fingerprint


def test_files_of_models_are_named_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An actor's working directory is another one."""
    linked(tmp_path / "models" / "mine")
    monkeypatch.chdir(tmp_path)
    named = VerifySettings(verify="models/mine", score_model="local-dir:models/judge", keep_images=True)
    assert resolved(named) == dataclasses.replace(
        named, verify=f"{tmp_path}/models/mine", score_model=f"local-dir:{tmp_path}/models/judge"
    )
    for name in ("demo", "models/gone", "stabilityai/sd-turbo"):
        assert resolved(VerifySettings(verify=name)).verify == name


def test_originals_are_read_as_they_were_captioned(
    make_tar: MakeTar, images: list[Image.Image], tmp_path: Path, verifier: Verifier
) -> None:
    table = PromptTable(str(tmp_path / "left"), CAPTIONED | {"source": {"image_key": "left.png"}})
    table.claim()
    shard = Unit(make_tar("in/l.tar", [("0.right.png", encoded(images[1])), ("0.left.png", encoded(images[0]))]), "l")
    table.publish(shard, [Row("0", shard.url, "ok", prompt=PROMPTS[0])], 1.0)
    verify_unit(shard, verifier, verified(table))
    assert rows_of(table, "l")[0]["regeneration"]["error"] is None


def test_a_signature_that_ran_out_is_given_anew(
    tmp_path: Path, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store that wants today's signature, and an output that knows addresses without any."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        info = tarfile.TarInfo("000.png")
        info.size = len(encoded(images[0]))
        tar.addfile(info, io.BytesIO(encoded(images[0])))

    class Store(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            good = "X-Amz-Signature=TODAY" in self.path
            self.send_response(200 if good else 403)
            self.send_header("Content-Length", str(len(data.getvalue()) if good else 0))
            self.end_headers()
            if good and self.command == "GET":
                self.wfile.write(data.getvalue())

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Store)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/a.tar"
        table = PromptTable(str(tmp_path / "out"), CAPTIONED)
        table.claim()
        table.publish(Unit(url, "a"), [Row("000", url, "ok", prompt=PROMPTS[0])], 1.0)
        how = ["--verify", "demo", "--verify-steps", "1", "--local"]
        told = []
        for given in ([], ["--input", f"{url}?X-Amz-Signature=OLDER"], ["--input", f"{url}?X-Amz-Signature=TODAY"]):
            monkeypatch.setattr(sys, "argv", ["job", table.url, *how, *given])
            status = run("verify")
            told.append((status, "".join(capsys.readouterr())))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert [status for status, _ in told] == [1, 1, 0]
    assert "if it needs a signature, run pez verify with --input and the signed URL" in told[0][1]
    assert url in told[1][1]
    assert not any(word in text for _, text in told for word in ("OLDER", "TODAY"))
    assert rows_of(table)[0]["regenerated_similarity"] is not None
    written = b"".join(path.read_bytes() for path in Path(table.url).rglob("*") if path.is_file())
    assert b"TODAY" not in written
    assert b"OLDER" not in written


def test_an_input_that_the_output_does_not_have_is_refused(
    shard: Unit,
    table: PromptTable,
    scene_tars: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["job", table.url, "--verify", "demo", "--local", "--input", scene_tars[0]])
    assert run("verify") == 2
    assert f"which this output does not have; expected its tars, like {shard.url}" in capsys.readouterr().err


def test_a_shard_that_cannot_be_read_in_passing_is_verified_later(
    shard: Unit, table: PromptTable, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.run.work.retry_delay", lambda _: 0.0)
    away = Path(shard.url).rename(f"{shard.url}.away")
    notes: list[str] = []

    def come_back(line: str) -> None:
        notes.append(line)
        away.rename(shard.url)

    reports: list[VerifyReport] = []
    worker, tasks = VerifyWorker(verifier, verified(table)), tasks_of([shard])
    assert run_serially(tasks, worker, reports.append, attempts=2, on_note=come_back) == {}
    assert [report.scored for report in reports] == [3]
    assert len(notes) == 1
    assert notes[0].endswith(". Retrying")
    away = Path(shard.url).rename(f"{shard.url}.away")
    (Path(table.url) / "_verified" / "a.json").unlink()
    assert shard.url in run_serially(tasks, worker, reports.append)


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


def test_a_blanked_picture_is_told_and_not_scored(
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


def test_a_picture_that_left_the_shard_is_told(
    shard: Unit, table: PromptTable, verifier: Verifier, make_tar: MakeTar, images: list[Image.Image]
) -> None:
    make_tar("in/a.tar", [("000.png", encoded(images[0])), ("002.png", encoded(images[2])[:99])])
    verify_unit(shard, verifier, verified(table))
    errors = {row["key"]: (row["regeneration"] or {}).get("error") for row in rows_of(table)}
    assert errors["000"] is None
    assert errors["001"] == "its image is no longer in the shard"
    assert str(errors["002"]).startswith("cannot decode the image")


def test_a_row_does_not_depend_on_the_others(
    shard: Unit, table: PromptTable, exact_verifier: Verifier, make_tar: MakeTar, images: list[Image.Image]
) -> None:
    verify_unit(shard, exact_verifier, verified(table))
    alone = Unit(make_tar("in/b.tar", [("002.png", encoded(images[2]))]), "b")
    table.publish(alone, [Row("002", alone.url, "ok", prompt=PROMPTS[2])], 1.0)
    verify_unit(alone, exact_verifier, verified(table))
    [row] = rows_of(table, "b")
    assert row["regenerated_similarities"] == rows_of(table)[3]["regenerated_similarities"]


def test_prompts_that_are_not_there_are_asked_for(table: PromptTable, verifier: Verifier) -> None:
    with pytest.raises(UnitError, match="x.tar has no prompts in .*; run pez caption first"):
        verify_unit(Unit("x.tar", "x"), verifier, verified(table))


def test_the_default_score_model_is_not_the_guide() -> None:
    chosen = {
        guide: score_model(VerifySettings(verify="demo"), guide)
        for guide in ("demo", "demo-judge", "ViT-H-14", "ViT-L-14", "ViT-bigG-14", "ViT-g-14")
    }
    assert {guide: name for guide, (name, _) in chosen.items()} == {
        "demo": "demo-judge",
        "demo-judge": "demo",
        "ViT-H-14": "ViT-bigG-14",
        "ViT-L-14": "ViT-bigG-14",
        "ViT-bigG-14": "ViT-H-14",
        "ViT-g-14": "ViT-H-14",
    }
    for name, pretrained in chosen.values():
        if name.startswith("ViT"):
            assert pretrained in open_clip.list_pretrained_tags_by_model(name)


def test_a_guide_that_scores_its_own_prompts_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="demo is both guide and judge"):
        check_verification(VerifySettings(verify="demo", score_model="demo"), "demo", "none")


@pytest.mark.parametrize(
    ("job", "words", "message"),
    [
        ("caption", ["--demo", "--verify", "{tmp}/gone"], "no folder or file '{tmp}/gone'; expected demo, a hub id"),
        ("caption", ["--demo", "--verify", ""], "--verify is empty"),
        ("caption", ["--demo", "--verify", "{tmp}/model.ckpt"], "model.ckpt is a pickle, which may run code"),
        ("caption", ["--demo", "--verify", "demo", "--verify-variant", "fp16"], "'demo' has no variant 'fp16'"),
        ("caption", ["--demo", "--verify", "{tmp}"], "no pipeline in {tmp}; expected a diffusers folder"),
        ("caption", ["--demo", "--verify", "demo", "--verify-steps", "0"], "--verify-steps is 0; expected 1 or more"),
        ("caption", ["--demo", "--verify", "demo", "--score-model", "ViT-Z"], "no weights are named for the score"),
        ("caption", ["--demo", "--verify", "demo", "--score-model", "local-dir:{tmp}"], "expected an open_clip folder"),
        ("caption", ["--demo", "--verify", "demo", "--verify-precision", "fp16", "--device", "cpu"],
         "verify_precision is fp16, which a CPU does not support"),
        ("verify", ["--verify", "demo"], "no _run.json in {tmp}/out; expected the output of python -m jobs.caption"),
    ],
)  # fmt: skip
def test_bad_usage_is_one_line_and_status_2(
    tmp_path: Path,
    job: str,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    (tmp_path / "model.ckpt").write_bytes(b"junk")
    options = [*(word.format(tmp=tmp_path) for word in words), "--local"]
    monkeypatch.setattr(sys, "argv", ["job", *([str(out)] if job == "verify" else ["--output", str(out)]), *options])
    assert run(job) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message.format(tmp=tmp_path) in line
    assert not out.exists()


def test_verify_asks_for_a_generator(
    table: PromptTable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["job", table.url, "--local"])
    assert run("verify") == 2
    assert "no generator is named; expected --verify demo" in capsys.readouterr().err


def run(job: str) -> int:
    if job == "verify":
        with pytest.raises(SystemExit) as ended:
            command.run(verify.VerifyJob, None, verify.verify)
    else:
        with pytest.raises(SystemExit) as ended:
            command.run(caption.CaptionJob, None, caption.caption)
    return int(ended.value.code or 0)


def test_verifying_later_gives_the_numbers_of_verifying_at_once(
    scene_tars: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    concurrent_units, later = tmp_path / "at once", tmp_path / "later"
    how = ["--verify", "demo", "--verify-steps", "1", "--local"]
    captions = ["--input", *scene_tars, "--model", "demo", "--steps", "5", "--swaps", "0", "--lanes", "16", "--local"]
    for name, words in (
        ("caption", ["--output", str(concurrent_units), *captions, *how]),
        ("caption", ["--output", str(later), *captions]),
        ("verify", [str(later), *how]),
    ):
        monkeypatch.setattr(sys, "argv", ["job", *words])
        assert run(name) == 0
    assert "verified 3/3 shards  12 prompts  mean regenerated similarity" in capsys.readouterr().out
    tables = [pq.read_table(folder).sort_by("key") for folder in (concurrent_units, later)]
    assert tables[0].num_rows == 12
    assert tables[0]["regenerated_similarity"].null_count == 0
    assert tables[0].equals(tables[1])

    (concurrent_units / "_verified" / "scenes-1.json").unlink()  # as after a kill
    (concurrent_units / "scenes-2.parquet").unlink()
    monkeypatch.setattr(sys, "argv", ["job", "--output", str(concurrent_units), *captions, *how])
    assert run("caption") == 0
    assert "3/3 shards  4 images" in (told := capsys.readouterr().out)
    assert "verified 3/3 shards  8 prompts" in told
    assert (concurrent_units / "_SUCCESS").exists()
    assert pq.read_table(concurrent_units).sort_by("key").equals(tables[0])


def test_a_job_with_verification_succeeds_only_when_all_is_verified(
    scene_tars: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    captions = ["--input", *scene_tars[:2], "--output", str(out), "--model", "demo", "--steps", "2", "--swaps", "0",
                "--lanes", "16", "--local"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["job", *captions])
    assert run("caption") == 0
    assert (out / "_SUCCESS").exists()
    Path(scene_tars[1]).write_bytes(b"no tar any more")
    monkeypatch.setattr(sys, "argv", ["job", *captions, "--verify", "demo", "--verify-steps", "1"])
    assert run("caption") == 1
    assert "1 of 2 shards failed" in (told := capsys.readouterr().out)
    assert "scenes-1.tar is not a tar" in told
    assert not (out / "_SUCCESS").exists()
    assert {p.stem for p in (out / "_verified").iterdir()} == {"scenes-0"}


def test_names_of_strangers_do_not_steer_a_terminal(
    make_tar: MakeTar,
    images: list[Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = PromptTable(f"{tmp_path}/[/out]", CAPTIONED)
    table.claim()
    shard = Unit(make_tar("in/[b]a\x1b[2J.tar", [("000.png", encoded(images[0])), ("bad.jpg", b"junk")]), "a")
    publish(table, shard, PROMPTS[:1])
    words = ["job", table.url, "--verify", "demo", "--verify-steps", "1", "--local"]
    statuses = []
    for data in (b"no tar any more", Path(shard.url).read_bytes()):
        Path(shard.url).write_bytes(data)
        monkeypatch.setattr(sys, "argv", words)
        statuses.append(run("verify"))
    shown = "".join(capsys.readouterr())
    assert statuses == [1, 0]
    assert r"[b]a\x1b[2J.tar is not a tar" in shown
    assert f"1 verified Parquet file in {table.url}" in shown
    assert not {c for c in shown.replace("\n", "") if not c.isprintable()}


def test_progress_tells_of_both_stages(shard: Unit, table: PromptTable, verifier: Verifier) -> None:
    report = verify_unit(shard, verifier, verified(table))
    told = io.StringIO()
    captions = table.finished(shard)
    assert captions is not None
    with JobProgress(2, 0, Console(file=told, width=200), verified=0) as progress:
        progress.report(captions)
        progress.look([verifier.progress])
        assert f"verified 0/2 shards  3 prompts  mean regenerated similarity {report.mean_similarity:.3f}" in (
            progress.line()
        )
        progress.report_verified(report)
    assert "1/2 shards  3 images" in told.getvalue()
    assert "verified 1/2 shards  3 prompts" in told.getvalue()
    shown = io.StringIO()
    Console(file=shown, width=200).print(prompt_table(table.read(shard)))
    assert "regenerated" in shown.getvalue()
    assert f"{rows_of(table)[0]['regenerated_similarity']:.3f}" in shown.getvalue()


def test_shards_are_found_from_their_reports(scene_tars: list[str], table: PromptTable) -> None:
    shards = name_units(scene_tars)
    for shard in shards:
        table.publish(shard, [Row("k", shard.url, "ok", prompt="p")], 1.0)
    Path(f"{table.url}/scenes-1.parquet").unlink()
    written = PromptTable.written(table.url)
    assert written.settings == table.settings
    assert written.shards() == [shards[0], shards[2]]


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


def test_null_columns_are_not_taken_for_verified_ones(shard: Unit, table: PromptTable, verifier: Verifier) -> None:
    verify_unit(shard, verifier, verified(table))
    marker = Path(f"{table.url}/_verified/a.json").read_bytes()
    publish(table, shard, PROMPTS[:3])
    Path(f"{table.url}/_verified/a.json").write_bytes(marker)  # put by a slower job
    assert verified(table).pending([shard]) == [shard]
    shown = io.StringIO()
    Console(file=shown, width=200).print(prompt_table(table.read(shard)))
    assert "regenerated" not in shown.getvalue()


def test_an_output_of_before_these_columns_is_verified(shard: Unit, table: PromptTable, verifier: Verifier) -> None:
    file = f"{table.url}/a.parquet"
    now = pq.read_table(file)
    pq.write_table(now.drop_columns(VERIFIED.names), file)
    assert verified(table).pending([shard]) == [shard]
    verify_unit(shard, verifier, verified(table))
    assert pq.read_schema(file).equals(now.schema)
    assert rows_of(table)[0]["regenerated_similarity"] is not None
    assert verified(table).pending([shard]) == []
