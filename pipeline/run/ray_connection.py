"""Joining a Ray cluster, or starting Ray on this machine; what is wrong with an address is known in seconds.

What Ray does by itself where nobody answers: it waits for minutes and prints lines of its C++.
"""

import logging
import os
import signal
import site
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.exceptions import RayError
from ray.job_config import JobConfig

from pez.errors import UserError
from pipeline.run.resources import Resources
from pipeline.settings import ClusterSettings, cluster_address

_PATIENCE = 5.0  # seconds for an address to answer
_ROOT = str(Path(__file__).resolve().parents[2])
# A client of HTTP/2, which gRPC is made of, says this first; a server answers with a frame of settings, its type at byte 3.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS_FRAME = 4
_WITHOUT = "try again, or run without Ray: --local"
_ADVICE = "expected the address of its head, whose usual port is 6379"


def connect(settings: ClusterSettings) -> None:
    """Join the cluster, or start Ray on this machine.

    Raises:
        UserError: no Ray answers at the address.
    """
    if ray.is_initialized():
        return
    address = cluster_address(settings)
    # Death notices of workers are reported by us, once and with what follows from them.
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # loopback only
        # Ray turns a loopback address that it is given into the machine's own and listens on all of them. Where it takes
        # itself to be unable of clusters (https://github.com/ray-project/ray/issues/18730) it stays on loopback.
        ray_constants.ENABLE_RAY_CLUSTER = False
        options.update(address="local", include_dashboard=False)
    else:
        check_address(address)
        options.update(address=address)
    if RAY_JOB_CONFIG_JSON_ENV_VAR not in os.environ:  # a submitted job has the folder that was submitted
        options.update(job_config=_JobConfig())
    ray_worker._worker_logs_enabled = False  # the only switch that its notices of dead workers know
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except (ConnectionError, RayError, RuntimeError, ValueError, AssertionError) as error:
        if address is not None:
            raise UserError(f"no Ray cluster at {address!r}: {_one_line(error)}") from error
        raise UserError(f"Ray does not start on this machine: {_one_line(error)}; {_WITHOUT}") from error
    except Exception as error:  # what Ray raises where its processes do not come up in time
        if type(error) is not Exception:
            raise
        raise UserError(f"Ray does not start on this machine: {_one_line(error)}; {_WITHOUT}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray puts its own in place


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def resources() -> Resources:
    """What the cluster has."""
    have = ray.cluster_resources()
    return Resources(have.get("GPU", 0.0), have.get("CPU", 1.0), fixed=started_here())


def started_here() -> bool:
    """True for a Ray that this process has started: no other machine can join it."""
    node = ray_worker._global_node
    return node is not None and node.is_head()  # of a Ray that was there before, this process is never the head


def check_address(address: str, patience: float = _PATIENCE) -> None:
    """Ask a Ray's port whether a Ray is behind it.

    Args:
        address: HOST:PORT or ray://HOST:PORT; what has no port, like `auto`, Ray itself finds out soon.
        patience: seconds for an answer; until then the port is tried again and again.

    Raises:
        UserError: it is no address, nobody answers, or something else than Ray does.
    """
    if address == "auto":
        return
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise UserError(f"{address!r} is no address of a Ray cluster; expected HOST:PORT, ray://HOST:PORT or auto")
    deadline = time.monotonic() + patience
    while True:
        try:
            left = max(deadline - time.monotonic(), 0.5)
            if _speaks_grpc(host, port, left) and (parts.scheme == "ray" or _is_head(host, port, left)):
                return
            raise UserError(f"no Ray cluster at {address!r}: something else than Ray listens there; {_ADVICE}")
        except OSError as error:
            if time.monotonic() + 0.5 > deadline or isinstance(error, socket.gaierror):
                reason = error.strerror or str(error) or type(error).__name__
                raise UserError(f"no Ray cluster at {address!r}: {reason}; {_ADVICE}") from error
            time.sleep(0.5)


def _speaks_grpc(host: str, port: int, patience: float) -> bool:
    """True where a server of gRPC, as Ray's is, answers.

    Raises:
        OSError: nobody answers.
    """
    with socket.create_connection((host, port), timeout=patience) as connection:
        if _uses_tls():
            return True  # it answers to the right certificate only
        connection.sendall(_HELLO)
        answer = b""
        while len(answer) < 4 and (data := connection.recv(4 - len(answer))):
            answer += data
    return answer[3:] == bytes((_SETTINGS_FRAME,))


def _is_head(host: str, port: int, patience: float) -> bool:
    """True where the server knows a question that every head of a Ray answers."""
    if _uses_tls():
        return True
    with grpc.insecure_channel(f"[{host}]:{port}" if ":" in host else f"{host}:{port}") as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=patience)
        except grpc.RpcError as error:  # one that wants a token is a Ray; its token is Ray's own matter
            return error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    return True


def _uses_tls() -> bool:
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


class _JobConfig(JobConfig):
    """Has the workers find this very code, and nothing else that the driver does not find.

    Ray puts the driver's working directory first on their `sys.path`, where a `pipeline.py` or `jobs` of the user's own
    hides ours: `python -m jobs.caption` looks there, but a console script does not.
    """

    def _get_proto_job_config(self) -> Any:
        here = os.path.abspath(os.curdir)
        found = {os.path.abspath(path or os.curdir) for path in sys.path}
        installed = {os.path.realpath(path) for path in (*site.getsitepackages(), site.getusersitepackages())}
        ours = [] if os.path.realpath(_ROOT) in installed else [_ROOT]
        self._py_driver_sys_path = [*([here] if here in found else []), *ours]  # the last comes first
        return super()._get_proto_job_config()
