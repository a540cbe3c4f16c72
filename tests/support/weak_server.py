"""An HTTP server of files with the weaknesses of real ones: no ranges, no lengths, connections that break."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class WeakServer(ThreadingHTTPServer):
    """Serves `files` on loopback.

    Args:
        files: bytes by name.
        ranges: answer parts where parts are asked for.
        length: tell the size.
        breaks: times that an answer is cut off at byte `break_at` of the file.
    """

    daemon_threads = True

    def __init__(
        self, files: dict[str, bytes], ranges: bool = True, length: bool = True, breaks: int = 0, break_at: int = 0
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.ranges, self.length = files, ranges, length
        self.breaks, self.break_at = breaks, break_at
        self.sent = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    @contextlib.contextmanager
    def running(self) -> Iterator["WeakServer"]:
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WeakServer

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        server, data = self.server, self.server.files.get(self.path.lstrip("/"))
        if data is None:
            self.send_error(404)
            return
        start, end = 0, len(data)
        asked = self.headers.get("Range") if server.ranges else None
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last) + 1, end)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        if server.length:
            self.send_header("Content-Length", str(end - start))
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if not body:
            return
        broken = server.breaks > 0 and start <= server.break_at < end
        if broken:
            server.breaks -= 1
            end = server.break_at
        with contextlib.suppress(ConnectionError):  # who asks may have had enough
            part = data[start:end]
            self.wfile.write(part if server.length else b"%x\r\n%s\r\n" % (len(part), part))
            if not server.length and not broken:
                self.wfile.write(b"0\r\n\r\n")
            server.sent += len(part)
        self.close_connection = broken
