"""What a client does, in one line each: submit, ask, wait, fetch."""

from typing import Any

import httpx
import psutil

from tests.server import Server, wait_until

ENDPOINT = "fal-ai/fast-svd-lcm/text-to-video"

Ticket = dict[str, Any]


def submit(server: Server, prompt: str) -> Ticket:
    with server.client() as client:
        answer = client.post(f"/queue/{ENDPOINT}", json={"prompt": prompt, "video_size": "square"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def status(server: Server, ticket: Ticket) -> dict[str, Any]:
    """Ask by path: after a restart the port is another."""
    with server.client() as client:
        answer = client.get(httpx.URL(ticket["status_url"]).path, params={"logs": 1})
    assert answer.status_code in (200, 202), answer.text
    return answer.json()


def wait_for(server: Server, ticket: Ticket, state: str) -> dict[str, Any]:
    def reached() -> dict[str, Any] | None:
        told = status(server, ticket)
        return told if told["status"] == state else None

    return wait_until(reached, f"{ticket['request_id']} to be {state}")


def result(server: Server, ticket: Ticket) -> httpx.Response:
    with server.client() as client:
        return client.get(httpx.URL(ticket["response_url"]).path)


def film(server: Server, ticket: Ticket) -> bytes:
    answer = result(server, ticket)
    assert answer.status_code == 200, answer.text
    with server.client() as client:
        fetched = client.get(httpx.URL(answer.json()["video"]["url"]).path)
    assert fetched.status_code == 200
    return fetched.content


def steps_told(told: dict[str, Any]) -> list[str]:
    return [line["message"].split(" (")[0] for line in told["logs"] if line["message"].startswith("step")]


def children(server: Server) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children(recursive=True)


def all_gone(processes: list[psutil.Process]) -> bool:
    return all(is_gone(one) for one in processes)


def is_gone(process: psutil.Process) -> bool:
    """A zombie is gone: it holds no device, only its parent's attention."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
