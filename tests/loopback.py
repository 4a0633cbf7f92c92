"""A server on the loopback interface that serves files as Zenodo does, with faults on request."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Loopback:
    """Serves ``files`` by name, and ``/api/records/1``, which describes them.

    ``breaks_after`` ends every response after that number of bytes; ``ranges`` permits requests of parts, which start
    ``misplaced`` bytes too late; ``published`` replaces fields of the record of a file; ``status`` lists the next
    status codes of a file; ``requests`` lists the name and ``Range`` of every file that was requested.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.breaks_after: int | None = None
        self.ranges = True
        self.misplaced = 0
        self.published: dict[str, dict] = {}
        self.status: dict[str, list[int]] = {}
        self.requests: list[tuple[str, str | None]] = []
        loopback = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                loopback.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.record = f"{self.url}/api/records/1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.removesuffix("/content").split("/")[-1]
        if handler.path == "/api/records/1":
            self._send(handler, 200, json.dumps(self._record()).encode())
            return
        wanted = handler.headers.get("Range")
        self.requests.append((name, wanted))
        status = self.status.get(name, []).pop(0) if self.status.get(name) else 200
        if name not in self.files:
            status = 404
        if status != 200:
            handler.send_error(status)
            return
        content, start = self.files[name], 0
        if wanted and self.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) + self.misplaced
            if start >= len(content):
                handler.send_error(416)
                return
            part = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            self._send(handler, 206, content[start:], part, self.breaks_after)
        else:
            self._send(handler, 200, content, {}, self.breaks_after)

    def _record(self) -> dict:
        files = []
        for name, content in self.files.items():
            checksum = f"md5:{hashlib.md5(content).hexdigest()}"
            links = {"self": f"{self.url}/api/records/1/files/{name}/content"}
            file = {"id": "0", "key": name, "size": len(content), "checksum": checksum, "links": links}
            files.append({**file, **self.published.get(name, {})})
        return {"id": 1, "doi": "10.5281/zenodo.1", "metadata": {"title": "A record"}, "files": files}

    @staticmethod
    def _send(
        handler: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        headers: dict | None = None,
        breaks_after: int | None = None,
    ) -> None:
        handler.send_response(status)
        for key, value in (headers or {}).items():
            handler.send_header(key, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:breaks_after])
