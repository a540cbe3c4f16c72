"""Check within seconds whether Ray answers at an address. Ray itself waits for minutes and prints lines of its C++ log."""

import os
import socket
import time
from urllib.parse import urlsplit

import grpc

from pez.errors import UserError

_PATIENCE = 5.0  # seconds for an address to answer
# An HTTP/2 client, and so a gRPC client, sends this first; a server answers with a settings frame, its type in byte 3.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS_FRAME = 4
_ADVICE = "expected the address of its head node, usually with port 6379"


def check_address(address: str, patience: float = _PATIENCE) -> None:
    """Check that a Ray cluster answers at an address.

    Args:
        address: HOST:PORT or ray://HOST:PORT; or auto, which Ray itself resolves.
        patience: seconds to wait for an answer; the port is tried every half second.

    Raises:
        UserError: this is not an address, nothing answers, or something other than Ray does.
    """
    if address == "auto":
        return
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise UserError(f"{address!r} is not the address of a Ray cluster; expected HOST:PORT, ray://HOST:PORT or auto")
    deadline = time.monotonic() + patience
    while True:
        try:
            left = max(deadline - time.monotonic(), 0.5)
            if _speaks_grpc(host, port, left) and (parts.scheme == "ray" or _is_head(host, port, left)):
                return
            raise UserError(f"no Ray cluster at {address!r}: something other than Ray listens there; {_ADVICE}")
        except OSError as error:
            if time.monotonic() + 0.5 > deadline or isinstance(error, socket.gaierror):
                reason = error.strerror or str(error) or type(error).__name__
                raise UserError(f"no Ray cluster at {address!r}: {reason}; {_ADVICE}") from error
            time.sleep(0.5)


def check_connected(address: str, connected: str) -> None:
    """Check that an address can be that of the cluster to which this process is connected.

    Args:
        address: HOST:PORT; others are not checked. A host has several names, so the ports are compared.
        connected: HOST:PORT of the connected cluster.

    Raises:
        UserError: it is another cluster.
    """
    port = address.rpartition(":")[2]
    if "://" not in address and port.isdecimal() and port != connected.rpartition(":")[2]:
        raise UserError(
            f"this process is connected to the Ray cluster at {connected}, not {address}; call ray.shutdown() first"
        )


def answers(host: str, port: int, patience: float = 2.0) -> bool:
    """Whether something listens at the address."""
    try:
        socket.create_connection((host, port), timeout=patience).close()
    except OSError:
        return False
    return True


def _speaks_grpc(host: str, port: int, patience: float) -> bool:
    """Whether a gRPC server, such as Ray's, answers.

    Raises:
        OSError: nothing answers.
    """
    with socket.create_connection((host, port), timeout=patience) as connection:
        if _uses_tls():
            return True  # it answers only with the right certificate
        connection.sendall(_HELLO)
        answer = b""
        while len(answer) < 4 and (data := connection.recv(4 - len(answer))):
            answer += data
    return answer[3:] == bytes((_SETTINGS_FRAME,))


def _is_head(host: str, port: int, patience: float) -> bool:
    """Whether the server knows a call that every Ray head node answers."""
    if _uses_tls():
        return True
    with grpc.insecure_channel(f"[{host}]:{port}" if ":" in host else f"{host}:{port}") as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=patience)
        except grpc.RpcError as error:  # a server that requires a token is Ray, which handles the token itself
            return error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    return True


def _uses_tls() -> bool:
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
