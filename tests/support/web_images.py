"""A web server of images that misbehaves by name."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class WebImages(ThreadingHTTPServer):
    """Serves `files`; `/500`, `/503-once`, `/cut`, `/hang`, `/drip` and `/redirect` do what they say."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.asked, self.agent = files, Counter[str](), ""
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    @contextlib.contextmanager
    def running(self) -> Iterator["WebImages"]:
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: WebImages

    def do_HEAD(self) -> None:
        self._answer(200, self.server.files.get(unquote(urlsplit(self.path).path), b""), body=False)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        web = self.server
        web.asked[path] += 1
        web.agent = self.headers["User-Agent"]
        some = next(iter(web.files.values()))
        if path == "/500" or (path == "/503-once" and web.asked[path] == 1):
            self._answer(int(path[1:4]), b"")
        elif path == "/503-once":
            self._answer(200, some)
        elif path == "/cut":
            self._answer(200, some[: len(some) // 2], length=len(some))
        elif path == "/redirect":
            self.send_response(302)
            self.send_header("Location", next(iter(web.files)))
            self.end_headers()
        elif path == "/hang":
            time.sleep(1)
        elif path == "/drip":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(20):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.1)
        else:
            data = web.files.get(path)
            self._answer(200 if data is not None else 404, data or b"")

    def _answer(self, status: int, data: bytes, length: int | None = None, body: bool = True) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""
