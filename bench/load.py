"""A load generator in its own process: one HTTP call over and over, on kept-alive connections.

Each connection sends its next call when the one before is answered. The order is JSON on stdin, so that the
key is on no command line; the figures are JSON on stdout. Any answer outside 2xx ends the run with an error.
"""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import uvloop

from stillmotion.cli.bench import percentile

#: Calls of this long at the start are not counted: connections open and caches fill.
WARM_S = 0.5
#: A generator that has not ended this long after its time hangs.
END_S = 60

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    host: str
    port: int
    method: str
    #: The connections take turns at choosing one; each stays with its own.
    paths: Sequence[str]
    key: str
    body: Mapping[str, Any] | None = None
    connections: int
    #: Time that is measured; with `calls` the longest it may take.
    seconds: float
    #: Pause of each connection between an answer and its next call, as clients that poll make.
    pause_s: float = 0
    #: End after this many answers; 0 = when the time is up.
    calls: int = 0

    def to_bytes(self, path: str) -> bytes:
        body = b"" if self.body is None else json.dumps(self.body).encode()
        head = (
            f"{self.method} {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
            f"Authorization: Key {self.key}\r\n"
        )
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return head.encode() + b"\r\n" + body


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    answers: int
    per_s: float
    p50_ms: float
    p99_ms: float


class Connection(asyncio.Protocol):
    """One kept-alive connection that asks until it is told to end."""

    def __init__(self, call: bytes, latencies: list[tuple[float, float]], pause_s: float) -> None:
        self._call = call
        self._latencies = latencies
        self._pause_s = pause_s
        self._received = bytearray()
        self._sent = 0.0
        self._ending = False
        self._pause: asyncio.TimerHandle | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not of asyncio's class.
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head = self._received.find(b"\r\n\r\n")
        if head < 0:
            return
        length = _LENGTH.search(self._received, 0, head)
        assert length is not None, "the server always says how long its answer is"
        if len(self._received) < head + 4 + int(length[1]):
            return
        now = time.perf_counter()
        if self._received[9:10] != b"2":
            self._fail(RuntimeError(bytes(self._received[:2000]).decode(errors="replace")))
            return
        self._received.clear()
        self._latencies.append((now, now - self._sent))
        if self._pause_s and not self._ending:
            self._pause = asyncio.get_running_loop().call_later(self._pause_s, self._ask)
        else:
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionError("the server closed the connection"))

    def end(self) -> None:
        """Ask no more; `ended` is set when the answer under way has come."""
        self._ending = True
        if self._pause is not None:
            self._pause.cancel()
            self._ask()

    def _ask(self) -> None:
        self._pause = None
        if self._ending:
            if not self.ended.done():
                self.ended.set_result(None)
            self._transport.close()
            return
        self._sent = time.perf_counter()
        self._transport.write(self._call)

    def _fail(self, error: Exception) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)
        self._transport.close()


async def generate(order: Order) -> Figures:
    loop = asyncio.get_running_loop()
    latencies: list[tuple[float, float]] = []
    calls = [order.to_bytes(order.paths[number % len(order.paths)]) for number in range(order.connections)]
    connections: list[Connection] = []
    for call in calls:
        _, connection = await loop.create_connection(
            lambda call=call: Connection(call, latencies, order.pause_s), order.host, order.port
        )
        connections.append(connection)
        # Clients that pause do not all ask at the same moment.
        await asyncio.sleep(order.pause_s / order.connections)
    await asyncio.sleep(0 if order.calls else WARM_S)
    begun = time.perf_counter()
    failed = asyncio.gather(*(connection.ended for connection in connections))
    while not failed.done() and (left := begun + order.seconds - time.perf_counter()) > 0:
        if 0 < order.calls <= len(latencies):
            break
        await asyncio.wait({failed}, timeout=min(left, 0.01) if order.calls else left)
    until = time.perf_counter()
    for connection in connections:
        connection.end()
    await failed
    counted = [latency for at, latency in latencies if begun <= at < until]
    return Figures(
        answers=len(counted),
        per_s=len(counted) / (until - begun),
        p50_ms=percentile(counted, 0.5) * 1000,
        p99_ms=percentile(counted, 0.99) * 1000,
    )


def run_load(order: Order) -> Figures:
    """Run the generator as a process of its own and wait for its figures."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.load"],
        input=json.dumps(asdict(order)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=order.seconds + END_S,
    )
    return Figures(**json.loads(done.stdout))


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(generate(Order(**json.load(sys.stdin)))))))
