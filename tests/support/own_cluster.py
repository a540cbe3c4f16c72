"""Ray clusters by `ray start`, as people have them: in another folder, of several nodes, with a dashboard."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

RAY = str(Path(sys.executable).with_name("ray"))


@contextlib.contextmanager
def started_cluster(folder: Path, *options: str, cpus: int = 2) -> Iterator[str]:
    """The head of a cluster, started in a folder; its address."""
    temporary = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # sockets have short paths
    port = free_port()
    words = ["--head", f"--port={port}", f"--temp-dir={temporary}", f"--num-cpus={cpus}", *options]
    if not any("dashboard" in option for option in options):
        words.append("--include-dashboard=false")
    words += [f"--{name}={free_port()}" for name in ("ray-client-server-port", "dashboard-agent-listen-port")]
    try:
        with _node(folder, words):
            yield f"127.0.0.1:{port}"
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def joined_node(folder: Path, address: str, before: Sequence[str] = (), cpus: int = 2) -> Iterator[None]:
    """One more node.

    Args:
        before: words before its command line, like `unshare`.
    """
    words = [f"--address={address}", f"--num-cpus={cpus}", f"--dashboard-agent-listen-port={free_port()}"]
    with _node(folder, words, before):
        yield


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _node(folder: Path, words: list[str], before: Sequence[str] = ()) -> Iterator[None]:
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
    log = folder / "ray.log"
    with log.open("a") as file:
        process = subprocess.Popen(
            [*before, RAY, "start", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1", *words],
            cwd=folder,
            env={**environment, "RAY_AUTH_MODE": "disabled", "OMP_WAIT_POLICY": "PASSIVE"},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = 90.0
        while "Ray runtime started" not in log.read_text().rpartition("--- node ---")[2] and deadline > 0:
            if process.poll() is not None:
                pytest.fail(f"ray start ended: {log.read_text()}")
            deadline -= 0.2
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
        with log.open("a") as file:
            file.write("--- node ---\n")
        yield
    finally:
        started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        for one in psutil.wait_procs(started, timeout=10)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
