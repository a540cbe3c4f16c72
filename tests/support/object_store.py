"""An S3 on loopback, of moto, that misbehaves as told."""

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import fsspec
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import ThreadedWSGIServer, make_server

Fault = Literal["error", "busy", "slow", "cut", "hang"]

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "key-of-the-environment",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


@dataclasses.dataclass(frozen=True)
class Request:
    """What a client asked for."""

    method: str
    path: str
    """/bucket/key"""
    signed_by: str
    """the Authorization header"""


class ObjectStore:
    """The store, and what it was asked.

    Args:
        fault: says what goes wrong with a request, None = nothing.
    """

    def __init__(self, fault: Callable[[Request], Fault | None] = lambda _: None) -> None:
        self.fault = fault
        self.requests: list[Request] = []
        self.app = DomainDispatcherApplication(create_backend_app)
        self.closing = threading.Event()
        self.url = ""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = Request(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_AUTHORIZATION", ""))
        self.requests.append(request)
        fault = self.fault(request)
        if fault in ("error", "busy"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            code, status = ("InternalError", "500 x") if fault == "error" else ("SlowDown", "503 x")
            start_response(status, [("Content-Type", "application/xml"), ("Connection", "close")])
            return (
                []
                if request.method == "HEAD"
                else [f"<Error><Code>{code}</Code><Message>told to</Message></Error>".encode()]
            )
        if fault == "hang":
            self.closing.wait(60)
        if fault == "slow":
            time.sleep(0.5)
        answer = self.app(environ, start_response)
        return _half(answer) if fault == "cut" else answer

    def asked(self, method: str, ending: str = "") -> list[str]:
        """Paths of the requests of one kind."""
        return [r.path for r in self.requests if r.method == method and r.path.endswith(ending)]


def _half(answer: Iterable[bytes]) -> Iterator[bytes]:
    data = b"".join(answer)
    yield data[: len(data) // 2]
    raise ConnectionAbortedError("told to")  # the server closes the connection


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Serve a store; `url` is for AWS_ENDPOINT_URL."""
    store = ObjectStore()
    server = make_server("127.0.0.1", 0, store, threaded=True, request_handler=_QuietHandler)
    assert isinstance(server, ThreadedWSGIServer)
    server.daemon_threads = True
    store.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        store.closing.set()
        server.shutdown()
        server.server_close()
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # they know the server's address


class _QuietHandler(MotoRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        """Requests are kept, not printed."""
