"""A webhook receiver on loopback, and fal's documented way to verify what it gets.

The steps of `verify` are those of fal's page on webhooks, in its order; only the library is another.
"""

import base64
import hashlib
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

#: Receivers refuse what is further off (5 minutes).
TOLERANCE_S = 300
PATIENCE_S = 60


@dataclass(frozen=True)
class Call:
    """One POST as it arrived."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def timestamp(self) -> int:
        return int(self.headers["X-Fal-Webhook-Timestamp"])


#: Answers a call; one that returns without an answer closes the connection.
Answer = Callable[[BaseHTTPRequestHandler], object]


def status(code: int, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "2")
        handler.end_headers()
        handler.wfile.write(b"ok")

    return answer


OK = status(200)


class Receiver:
    """Gives the answers in turn, the last one for ever; `got` holds what arrived."""

    def __init__(self, *answers: Answer) -> None:
        self.answers: list[Answer] = [*(answers or (OK,))]
        self.got: queue.Queue[Call] = queue.Queue()
        #: Set when the receiver ends, for answers that would never.
        self.ending = threading.Event()
        outer = self

        class Post(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if len(body) < int(self.headers["Content-Length"]):
                    # Its sender was killed meanwhile: nothing arrived.
                    return
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                outer.got.put(Call(self.path, dict(self.headers), body))
                answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Post)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/hook"

    def hang(self, handler: BaseHTTPRequestHandler) -> None:
        """An answer that never comes."""
        self.ending.wait(PATIENCE_S)

    def next(self, timeout_s: float = PATIENCE_S) -> Call:
        return self.got.get(timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ending.set()
        self._server.shutdown()
        self._server.server_close()


def verify(headers: Mapping[str, str], body: bytes, jwks: Mapping[str, Any], now: float) -> bool:
    """Verify a webhook as fal documents it."""
    request_id = headers["X-Fal-Webhook-Request-Id"]
    user_id = headers["X-Fal-Webhook-User-Id"]
    timestamp = headers["X-Fal-Webhook-Timestamp"]
    signature = bytes.fromhex(headers["X-Fal-Webhook-Signature"])
    # 1. Not older or newer than five minutes.
    if abs(now - int(timestamp)) > TOLERANCE_S:
        return False
    # 2. Four lines, the last the SHA-256 of the body as it arrived.
    lines = [request_id, user_id, timestamp, hashlib.sha256(body).hexdigest()]
    message = "\n".join(lines).encode()
    # 3. Any of the published keys.
    for key in jwks["keys"]:
        # fal's own verifier adds no padding before it decodes.
        public = base64.b64decode(key["x"], altchars=b"-_", validate=True)
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
        except InvalidSignature:
            continue
        return True
    return False
