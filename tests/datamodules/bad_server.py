"""HTTP server over a folder that misbehaves on request."""

import http.server
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BadServer(http.server.ThreadingHTTPServer):
    """Server of `folder` with ranges that counts bytes; each request of a shard takes the next of `faults`.

    Faults: drop (close the connection half way), cut (a well-formed answer with fewer bytes), corrupt (one byte),
    slow (silence), error (500), whole (ignore the range).
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.faults: list[str] = []
        self.always: str | None = None
        self.sent: Counter[str] = Counter()
        self.requests = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that close the connection."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: BadServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.server.folder / self.path.lstrip("/").split("?")[0]
        if path.is_dir():
            links = "".join(f'<a href="{p.name}">{p.name}</a>' for p in sorted(path.iterdir()))
            self.send(200, links.encode(), {"Content-Type": "text/html"}, body)
            return
        if not path.is_file():
            self.send(404, b"", {}, body)
            return
        raw, code, headers = path.read_bytes(), 200, {"Accept-Ranges": "bytes"}
        fault = None
        if body and path.suffix == ".bin":
            self.server.requests += 1
            fault = self.server.faults.pop(0) if self.server.faults else self.server.always
        requested = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if requested and fault != "whole":
            first, last = int(requested[1]), min(int(requested[2]), len(raw) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(raw)}"
            raw, code = raw[first : last + 1], 206
        if fault == "error":
            self.send(500, b"", {}, body)
            return
        if fault == "slow":
            time.sleep(3)
        if fault == "cut":
            raw = raw[: len(raw) // 2]
        if fault == "corrupt":
            raw = raw[:-1] + bytes([raw[-1] ^ 1])
        self.send(code, raw, headers, body, drop=fault == "drop")
        if body:
            self.server.sent[path.name] += len(raw)

    def send(self, code: int, raw: bytes, headers: dict[str, str], body: bool, *, drop: bool = False) -> None:
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(raw))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(raw[: len(raw) // 2] if drop else raw)
        if drop:
            self.wfile.flush()
            self.close_connection = True


@contextmanager
def serving(folder: Path) -> Iterator[BadServer]:
    """Run a server on a free port inside the block."""
    server = BadServer(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
