"""Weights that cannot be had are told before work, and soon."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from jobs.caption import CaptionJob, caption
from pez.errors import UserError
from pipeline.run.hub import check_reachable
from pipeline.settings import CaptionSettings

MODEL, TAG = "ViT-B-32", "laion2b_s34b_b79k"
REPOSITORY = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and a hub that refuses connections."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.mark.parametrize(("model", "tag"), [(MODEL, TAG), (f"hf-hub:{REPOSITORY}", None)])
def test_a_hub_that_does_not_answer_is_told_soon(model: str, tag: str | None) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"{REPOSITORY}\) are not on this machine, and 127.0.0.1:\d+ does not answer"):
        check_reachable(model, tag)
    assert time.monotonic() - start < 15


def test_a_job_without_network_claims_no_output(scene_tars: list[str], tmp_path: Path) -> None:
    job = CaptionJob(str(tmp_path / "out"), tuple(scene_tars), local=True, caption=CaptionSettings(MODEL, TAG))
    with pytest.raises(UserError, match="does not answer"):
        caption(job)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_here_need_no_hub(tmp_path: Path) -> None:
    snapshot = tmp_path / "cache" / f"models--{REPOSITORY.replace('/', '--')}" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "open_clip_model.safetensors").touch()
    check_reachable(MODEL, TAG)


def test_what_is_shipped_or_in_a_file_needs_no_hub(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.touch()
    check_reachable("demo", "whatever")
    check_reachable(MODEL, str(file))
    check_reachable(f"local-dir:{tmp_path}", None)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)  # an answer is enough

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("hub")
def test_a_hub_that_answers_may_have_the_weights() -> None:
    check_reachable(MODEL, TAG)
