"""`pez verify`, and `pez caption --verify`, as commands."""

import io
import json
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from samples_on_disk import MakeTar, encoded
from small_generators import linked
from verified_outputs import CAPTIONED, PROMPTS, publish, rows_of, run_job, verified

from pipeline.progress import JobProgress, prompt_table
from pipeline.rows import Row
from pipeline.sources.base import Unit
from pipeline.stages.verify import Verifier, verify_unit
from pipeline.table import PromptTable


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
    assert run_job(job) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message.format(tmp=tmp_path) in line
    assert not out.exists()


def test_verify_needs_a_generator(
    table: PromptTable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["job", table.url, "--local"])
    assert run_job("verify") == 2
    assert "no generator is named; expected --verify demo" in capsys.readouterr().err


def test_an_input_that_is_not_in_the_output_is_refused(
    shard: Unit,
    table: PromptTable,
    scene_tars: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["job", table.url, "--verify", "demo", "--local", "--input", scene_tars[0]])
    assert run_job("verify") == 2
    assert f"which this output does not have; expected its tars, like {shard.url}" in capsys.readouterr().err


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
        statuses.append(run_job(name))
    output = capsys.readouterr()
    assert statuses == [2, 2, 0]
    assert output.err.count("cannot load the generator") == 2
    assert len(output.err.strip().splitlines()) == 2
    assert json.loads((out / "_verify.json").read_text())["settings"]["generator"]["verify"] == "demo"


def test_verifying_later_gives_the_same_numbers_as_verifying_at_once(
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
        assert run_job(name) == 0
    assert "verified 3/3 shards  12 prompts  mean regenerated similarity" in capsys.readouterr().out
    tables = [pq.read_table(folder).sort_by("key") for folder in (concurrent_units, later)]
    assert tables[0].num_rows == 12
    assert tables[0]["regenerated_similarity"].null_count == 0
    assert tables[0].equals(tables[1])

    (concurrent_units / "_verified" / "scenes-1.json").unlink()  # as after a kill
    (concurrent_units / "scenes-2.parquet").unlink()
    monkeypatch.setattr(sys, "argv", ["job", "--output", str(concurrent_units), *captions, *how])
    assert run_job("caption") == 0
    assert "3/3 shards  4 images" in (output := capsys.readouterr().out)
    assert "verified 3/3 shards  8 prompts" in output
    assert (concurrent_units / "_SUCCESS").exists()
    assert pq.read_table(concurrent_units).sort_by("key").equals(tables[0])


def test_a_job_with_verification_succeeds_only_when_all_is_verified(
    scene_tars: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    captions = ["--input", *scene_tars[:2], "--output", str(out), "--model", "demo", "--steps", "2", "--swaps", "0",
                "--lanes", "16", "--local"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["job", *captions])
    assert run_job("caption") == 0
    assert (out / "_SUCCESS").exists()
    Path(scene_tars[1]).write_bytes(b"no tar any more")
    monkeypatch.setattr(sys, "argv", ["job", *captions, "--verify", "demo", "--verify-steps", "1"])
    assert run_job("caption") == 1
    assert "1 of 2 shards failed" in (output := capsys.readouterr().out)
    assert "scenes-1.tar is not a tar" in output
    assert not (out / "_SUCCESS").exists()
    assert {p.stem for p in (out / "_verified").iterdir()} == {"scenes-0"}


def test_an_expired_signature_can_be_replaced(
    tmp_path: Path, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store that accepts today's signature only, and an output that records URLs without signatures."""
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
        output = []
        for given in ([], ["--input", f"{url}?X-Amz-Signature=OLDER"], ["--input", f"{url}?X-Amz-Signature=TODAY"]):
            monkeypatch.setattr(sys, "argv", ["job", table.url, *how, *given])
            status = run_job("verify")
            output.append((status, "".join(capsys.readouterr())))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert [status for status, _ in output] == [1, 1, 0]
    assert "if it needs a signature, run pez verify with --input and the signed URL" in output[0][1]
    assert url in output[1][1]
    assert not any(word in text for _, text in output for word in ("OLDER", "TODAY"))
    assert rows_of(table)[0]["regenerated_similarity"] is not None
    written = b"".join(path.read_bytes() for path in Path(table.url).rglob("*") if path.is_file())
    assert b"TODAY" not in written
    assert b"OLDER" not in written


def test_control_characters_in_names_do_not_reach_the_terminal(
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
        statuses.append(run_job("verify"))
    shown = "".join(capsys.readouterr())
    assert statuses == [1, 0]
    assert r"[b]a\x1b[2J.tar is not a tar" in shown
    assert f"1 verified Parquet file in {table.url}" in shown
    assert not {c for c in shown.replace("\n", "") if not c.isprintable()}


def test_progress_shows_both_stages(shard: Unit, table: PromptTable, verifier: Verifier) -> None:
    report = verify_unit(shard, verifier, verified(table))
    output = io.StringIO()
    captions = table.finished(shard)
    assert captions is not None
    with JobProgress(2, 0, Console(file=output, width=200), verified=0) as progress:
        progress.report(captions)
        progress.look([verifier.progress])
        assert f"verified 0/2 shards  3 prompts  mean regenerated similarity {report.mean_similarity:.3f}" in (
            progress.line()
        )
        progress.report_verified(report)
    assert "1/2 shards  3 images" in output.getvalue()
    assert "verified 1/2 shards  3 prompts" in output.getvalue()
    shown = io.StringIO()
    Console(file=shown, width=200).print(prompt_table(table.read(shard)))
    assert "regenerated" in shown.getvalue()
    assert f"{rows_of(table)[0]['regenerated_similarity']:.3f}" in shown.getvalue()
