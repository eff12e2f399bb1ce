"""A hub on loopback: serves repositories that lie in a folder, the way the Hugging Face hub's API does.

Large files carry an LFS digest, small ones a git blob id; gated repositories want a token; a download can
be cut after some bytes, to be resumed by a Range request.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LARGE = ".safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LocalHub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.root = root
        self.gated: dict[str, str] = {}  # repository -> the token it wants
        self.corrupt: set[str] = set()  # file names that arrive with a flipped byte
        self.cut_after: int | None = None  # bytes of the next large file to send, once
        self.sent: list[tuple[str, int, int]] = []  # path, first byte, bytes

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running_hub(root: Path) -> Iterator[LocalHub]:
    hub = LocalHub(root)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class Answer(BaseHTTPRequestHandler):
    server: LocalHub  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]))
        elif parts[2:3] == ["resolve"]:
            self._file("/".join(parts[:2]), "/".join(parts[4:]), body)
        else:
            self._refuse(404, "RepoNotFound")

    def _describe(self, repository: str) -> None:
        folder = self.server.root / repository
        if not folder.is_dir():
            return self._refuse(404, "RepoNotFound")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        siblings = [sibling(path, path.relative_to(folder).as_posix()) for path in files]
        text = json.dumps({"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings})
        self._send(200, {"Content-Type": "application/json"}, text.encode())

    def _file(self, repository: str, name: str, body: bool) -> None:
        wanted = self.server.gated.get(repository)
        if wanted and self.headers.get("Authorization") != f"Bearer {wanted}":
            return self._refuse(403, "GatedRepo")
        path = self.server.root / repository / name
        if not path.is_file():
            return self._refuse(404, "EntryNotFound")
        data = path.read_bytes()
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Linked-Size": str(len(data)),
            "Accept-Ranges": "bytes",
        }
        if not body:
            return self._send(200, headers | {"Content-Length": str(len(data))}, b"")
        if name in self.server.corrupt:
            data = bytes([data[0] ^ 1]) + data[1:]
        self._stream(name, data, headers)

    def _stream(self, name: str, data: bytes, headers: dict[str, str]) -> None:
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        part = data[first:]
        cut = None
        if name.endswith(LARGE):
            cut, self.server.cut_after = self.server.cut_after, None
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        headers["Content-Length"] = str(len(part))
        if cut is not None:
            part = part[:cut]
            self.close_connection = True
        self.server.sent.append((name, first, len(part)))
        self._send(206 if first else 200, headers, part)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, {"X-Error-Code": code}, b"")

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def sibling(path: Path, name: str) -> dict[str, Any]:
    data = path.read_bytes()
    told: dict[str, Any] = {
        "rfilename": name,
        "size": len(data),
        "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest(),
    }
    if path.suffix == LARGE:
        told["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return told
