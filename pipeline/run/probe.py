"""Whether a Ray answers at an address, known in seconds: Ray itself waits for minutes and prints lines of its C++."""

import os
import socket
import time
from urllib.parse import urlsplit

import grpc

from pez.errors import UserError

_PATIENCE = 5.0  # seconds for an address to answer
# A client of HTTP/2, which gRPC is made of, says this first; a server answers with a frame of settings, its type at byte 3.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS_FRAME = 4
_ADVICE = "expected the address of its head, whose usual port is 6379"


def check_address(address: str, patience: float = _PATIENCE) -> None:
    """See whether a Ray cluster answers at an address.

    Args:
        address: HOST:PORT or ray://HOST:PORT; or auto, which Ray itself resolves.
        patience: seconds for an answer; until then the port is tried every half second.

    Raises:
        UserError: it is no address, nothing answers, or something other than Ray does.
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


def answers(host: str, port: int, patience: float = 2.0) -> bool:
    """True where something listens."""
    try:
        socket.create_connection((host, port), timeout=patience).close()
    except OSError:
        return False
    return True


def _speaks_grpc(host: str, port: int, patience: float) -> bool:
    """True where a gRPC server answers, as Ray's is.

    Raises:
        OSError: nothing answers.
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
    """True where the server knows a call that every Ray head answers."""
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
