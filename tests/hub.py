"""A Hugging Face hub on loopback: as much of its HTTP as huggingface-hub needs to fetch repositories."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE_BYTES = 1_000_000
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = COMMIT[::-1]  # of all repositories but the first, as on the real Hub, where no two have the same


class Hub:
    """Serves `folder` as `repository`, and others beside it. `fetched` lists the files sent, `ranges` where each began.

    While `go_on` is not set, a large file stops before its last part: huggingface-hub reads 10 MB at a time, and counts
    them only then. `cut_once` breaks the connection there the first time. `damage` changes a large file's last byte.
    """

    def __init__(self, folder: Path, repository: str, **others: Path) -> None:
        """`others`: folders by the last part of their repositories' names, which have the same owner."""
        self.folder, self.repository = folder, repository
        owner = repository.split("/")[0]
        self._folders = {repository: folder, **{f"{owner}/{name}": other for name, other in others.items()}}
        self.go_on = threading.Event()
        self.reset()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def reset(self) -> None:
        self.fetched: list[str] = []
        self.ranges: list[int] = []
        self.cut_once = self.damage = False
        self.go_on.set()

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *details: object) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        path = unquote(urlsplit(request.path).path)
        repository = "/".join(path.removeprefix("/api/models").split("/")[1:3])
        folder = self._folders.get(repository)
        commit = COMMIT if repository == self.repository else OTHER_COMMIT
        if folder is None:
            self._send_json(request, {"error": "not found"}, commit, 404)
        elif path.startswith(f"/{repository}/resolve/"):
            self._send_file(request, folder / path.rsplit("/", 1)[1], commit, body)
        elif path.startswith(f"/api/models/{repository}/tree/"):
            self._send_json(request, [self._entry(f) for f in sorted(folder.iterdir())], commit)
        else:
            siblings = [{"rfilename": f.name} for f in sorted(folder.iterdir())]
            self._send_json(request, {"id": repository, "sha": commit, "siblings": siblings}, commit)

    def _entry(self, file: Path) -> dict:
        return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": self._etag(file)}

    @staticmethod
    def _etag(file: Path) -> str:
        """SHA-256 of a large file and git's SHA-1 of a small one, as on the real Hub."""
        data = file.read_bytes()
        if len(data) > LARGE_BYTES:
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()

    @staticmethod
    def _send_json(request: BaseHTTPRequestHandler, value: object, commit: str, status: int = 200) -> None:
        data = json.dumps(value).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.send_header("X-Repo-Commit", commit)
        if status == 404:
            request.send_header("X-Error-Code", "RepoNotFound")
        request.end_headers()
        request.wfile.write(data)

    def _send_file(self, request: BaseHTTPRequestHandler, file: Path, commit: str, body: bool) -> None:
        data = file.read_bytes()
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(data) - start))
        request.send_header("ETag", f'"{self._etag(file)}"')
        request.send_header("X-Repo-Commit", commit)
        request.send_header("Accept-Ranges", "bytes")
        request.end_headers()
        if body:
            self.fetched.append(file.name)
            self.ranges.append(start)
            last = max(start, len(data) - 200_000)
            request.wfile.write(data[start:last])
            if len(data) > LARGE_BYTES:
                request.wfile.flush()
                self.go_on.wait(60)
                if self.cut_once:
                    self.cut_once = False
                    request.close_connection = True
                    request.connection.shutdown(socket.SHUT_RDWR)
                    return
                if self.damage:
                    data = data[:-1] + bytes([data[-1] ^ 1])
            request.wfile.write(data[last:])
