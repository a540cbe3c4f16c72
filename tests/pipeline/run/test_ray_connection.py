"""Joining a cluster: what does not answer is told soon; and whatever folder a job is started in, actors run our code."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from running import ROOT

from pez.errors import UserError
from pipeline.run import ray as runner
from pipeline.run.probe import check_address
from pipeline.settings import ClusterSettings


@pytest.fixture
def dead() -> str:
    """An address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def web() -> Iterator[str]:
    """A web server's address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("error", [RuntimeError, ConnectionError, Exception])
def test_a_ray_of_this_machine_that_does_not_start_is_one_line(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:
        raise error("The current node timed out\nduring startup.")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError) as found:
        runner.connect(ClusterSettings())
    line = "Ray does not start on this machine: The current node timed out during startup."
    assert str(found.value) == f"{line}; try again, or run without Ray: --local"


@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize(
    ("listener", "told"),
    [("dead", "Connection refused"), ("silent", "timed out"), ("web", "something other than Ray listens there")],
)
def test_an_address_without_a_ray_is_reported_in_seconds(
    scheme: str, listener: str, told: str, request: pytest.FixtureRequest
) -> None:
    address = scheme + request.getfixturevalue(listener)
    start = time.monotonic()
    with pytest.raises(UserError, match=f"^no Ray cluster at {re.escape(repr(address))}: {told}"):
        check_address(address, patience=1.5)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("address", ["localhost", "head:port", "127.0.0.1:99999", ":6379", "ray://head"])
def test_what_is_no_address_says_what_one_looks_like(address: str) -> None:
    with pytest.raises(
        UserError, match="is not the address of a Ray cluster; expected HOST:PORT, ray://HOST:PORT or auto"
    ):
        check_address(address)


def test_a_job_for_a_cluster_that_is_gone_is_one_line_and_status_2(dead: str, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "jobs.caption", "--demo", "--output", str(tmp_path / "out")]
    environment = {**os.environ, "RAY_ADDRESS": dead}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert re.fullmatch(f"error: no Ray cluster at '{dead}': Connection refused; expected .*\n", done.stderr)
    told = done.stdout.splitlines()
    assert told == ["loading PyTorch and Ray", f"joining the Ray cluster at {dead}"], "nothing of Ray's own"
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_a_process_that_is_connected_elsewhere_is_told_so(dead: str) -> None:
    with pytest.raises(UserError, match=f"^this process is connected to the Ray cluster at .*, not {dead}; call ray"):
        runner.connect(ClusterSettings(address=dead))
    assert runner.connect(ClusterSettings()).cpus == 2


@pytest.mark.slow
def test_a_users_own_modules_of_our_names_do_not_hide_ours_from_actors(scene_tars: list[str], tmp_path: Path) -> None:
    """As of a console script, which does not look for modules in the folder that it is started in."""
    user = tmp_path / "user"
    for name in ("pipeline.py", "pez.py", "jobs/__init__.py", "ray.py"):
        (user / name).parent.mkdir(parents=True, exist_ok=True)
        (user / name).write_text("raise RuntimeError('this is the code of the user')\n")
    code = f"""
import sys
sys.path.append({str(ROOT)!r})
from jobs import caption, command
command.run(caption.CaptionJob, None, caption.caption)
"""
    words = ["--input", scene_tars[0], "--output", "out", "--model", "demo", "--steps", "3", "--swaps", "0"]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    line = [sys.executable, "-P", "-c", code, *words]
    done = subprocess.run(line, cwd=user, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert pq.read_table(user / "out").num_rows == 4
