"""Open streams of a real server: what SIGTERM, many at once and clients that vanish mean to them."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.acceptance.calls import ENDPOINT, Ticket, submit, wait_for
from tests.server import PATIENCE_S, TIMED_ENGINE, Server, wait_until

SLOW = "steps=20 pause=0.1"
ENDLESS = "steps=100000 pause=0.05"


def read(lines: Any) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def watch(server: Server, ticket: Ticket, told: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Read a status stream to its end; `told` is filled meanwhile."""
    events = [] if told is None else told
    path = httpx.URL(ticket["status_url"]).path + "/stream"
    with server.client() as client, client.stream("GET", path, params={"logs": "1"}) as answer:
        for line in answer.iter_lines():
            events += read([line])
    return events


def waiting_requests(server: Server) -> int:
    """Count who waits, by what a call that would be one more is told."""
    with server.client() as client:
        body = {"prompt": "a boat"}
        for most in range(9):
            answer = client.post(f"/queue/{ENDPOINT}?fal_max_queue_length={most}", json=body)
            if answer.status_code == 200:
                client.put(httpx.URL(answer.json()["cancel_url"]).path)
                return most
    raise AssertionError("more than eight wait")


def test_sigterm_lets_streams_tell_the_running_film_and_breaks_off_the_others_at_once(tmp_path: Path) -> None:
    with Server(tmp_path / "data", engine=TIMED_ENGINE) as server, ThreadPoolExecutor(3) as threads:
        running = submit(server, SLOW)
        wait_for(server, running, "IN_PROGRESS")
        waiting = submit(server, "a rocket")
        told: list[dict[str, Any]] = []
        telling = threads.submit(watch, server, running)
        silent = threads.submit(watch, server, waiting, told)
        wait_until(lambda: told, "the first event of the waiting request")
        with server.client() as client:
            sync = threads.submit(client.post, f"/run/{ENDPOINT}", json={"prompt": "a kite"})
            wait_until(lambda: waiting_requests(server) == 2, "the sync call to wait")
            server.terminate()
            assert telling.result()[-1]["status"] == "COMPLETED"
            ended = time.monotonic()
            assert server.wait() == 0
            # An open stream held back by uvicorn's grace would take its 5 s.
            assert time.monotonic() - ended < 4
            with pytest.raises(httpx.RemoteProtocolError):
                silent.result()
            assert sync.result().status_code == 503
        assert {event["status"] for event in told} == {"IN_QUEUE"}
        assert "Traceback" not in server.output() and "ASGI" not in server.output()
        server.restart()
        wait_for(server, waiting, "COMPLETED")


def test_many_streams_end_with_their_requests_and_those_of_vanished_clients_leave_nothing(
    server: Server,
) -> None:
    def connections() -> int:
        return sum(
            one.status == psutil.CONN_ESTABLISHED
            for one in psutil.Process(server.process.pid).net_connections("tcp")
        )

    ticket = submit(server, ENDLESS)
    wait_for(server, ticket, "IN_PROGRESS")
    before = connections()
    path = httpx.URL(ticket["status_url"]).path
    with ThreadPoolExecutor(20) as threads:
        staying = [threads.submit(watch, server, ticket) for _ in range(20)]
        limits = httpx.Limits(max_connections=60)
        with httpx.Client(
            base_url=server.url, headers=server.headers, limits=limits, timeout=PATIENCE_S, trust_env=False
        ) as client:
            with ExitStack() as open_streams:
                for _ in range(40):
                    answer = open_streams.enter_context(client.stream("GET", f"{path}/stream?logs=1"))
                    assert read([next(answer.iter_lines())])[0]["status"] == "IN_PROGRESS"
                begun = time.monotonic()
                for _ in range(100):
                    assert client.get(path).status_code == 202
                assert time.monotonic() - begun < 5
            # Leaving the block left the streams.
            client.put(f"{path.removesuffix('/status')}/cancel")
        for stream in staying:
            assert stream.result()[-1]["error_type"] == "client_cancelled"
    wait_until(lambda: connections() <= before, "the connections of 60 streams to close")
