"""A way to the MLflow server on which things go wrong."""

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


class Faults:
    "What happens to the next requests: a status to answer, or `cut` after the server has taken one"

    def __init__(self) -> None:
        self.plan: list[tuple[str, int | str]] = []  # Part of the path that is hit, and what happens to it
        self.struck: list[str] = []
        self._lock = threading.Lock()

    def strike(self, path: str) -> int | str | None:
        with self._lock:
            for number, (part, fault) in enumerate(self.plan):
                if part in path:
                    del self.plan[number]
                    self.struck.append(f"{fault} {path}")
                    return fault
        return None


@contextmanager
def open_proxy(server: str) -> Iterator[tuple[str, Faults]]:
    "Address of the proxy, and its faults"
    faults, behind = Faults(), urlsplit(server)

    class Handler(BaseHTTPRequestHandler):
        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = faults.strike(self.path)
            if isinstance(fault, int):
                return self._answer(fault, [("Retry-After", "0")], b"{}")
            way = http.client.HTTPConnection(behind.hostname or "", behind.port or 80, timeout=60)
            way.request(self.command, self.path, body, dict(self.headers))
            answer = way.getresponse()
            content = answer.read()
            if fault == "cut":
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self._answer(answer.status, answer.getheaders(), content)

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _pass

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_port}", faults
        finally:
            proxy.shutdown()
            thread.join()
