"""A network in front of an S3 server that has it throttle, or that cuts its answers off: the one part that is faked."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class BadNetwork:
    """Serves what the endpoint serves at `url`.

    Args:
        endpoint: of the real server.
        throttled: how often each request is refused with SlowDown before it is let through.
        cut_off: whether the answer to a GET of a path ends in its middle.
    """

    def __init__(
        self, endpoint: str, *, throttled: int = 0, cut_off: Callable[[str], bool] = lambda path: False
    ) -> None:
        self.num_throttled = self.num_cut_off = 0
        seen: Counter[str] = Counter()
        network = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length) if length else self._chunks()
                seen[f"{self.command} {self.path}"] += 1
                if seen[f"{self.command} {self.path}"] <= throttled:
                    network.num_throttled += 1
                    return self._answer(503, {}, _SLOW_DOWN)
                connection = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=30)
                headers = {name: value for name, value in self.headers.items() if name != "Transfer-Encoding"}
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
                headers = dict(answer.getheaders())
                connection.close()
                path = urlsplit(self.path).path
                self._answer(answer.status, headers, content, cut=self.command == "GET" and cut_off(path))

            def _answer(self, status: int, headers: dict[str, str], content: bytes, *, cut: bool = False) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "connection", "date", "server", "transfer-encoding"):
                        self.send_header(name, value)
                size = headers.get("Content-Length", str(len(content))) if self.command == "HEAD" else len(content)
                self.send_header("Content-Length", str(size))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if cut else content)
                if cut:
                    network.num_cut_off += 1
                    self.close_connection = True

            def _chunks(self) -> bytes:
                content = b""
                while self.headers.get("Transfer-Encoding") == "chunked":
                    size = int(self.rfile.readline().split(b";")[0], 16)
                    content += self.rfile.read(size)
                    self.rfile.readline()
                    if not size:
                        break
                return content

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = "http://{}:{}".format(*self._server.server_address)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
