"""Webhooks of real servers: sent, verified, sent again after a kill, and the operator's commands for them."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from stillmotion.http import wire
from stillmotion.signatures import SigningKeys
from tests.acceptance.calls import ENDPOINT, Ticket, result, wait_for
from tests.receiver import Call, Receiver, status, verify
from tests.server import TIMED_ENGINE, Server, run_cli, wait_until

ENV = {"STILLMOTION_WEBHOOK_ALLOW": "127.0.0.1", "STILLMOTION_WEBHOOK_RETRY_BASE_S": "0.05"}
ENDLESS = "steps=100000 pause=0.05"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("hooked") / "data", engine=TIMED_ENGINE, env=ENV) as running:
        yield running
        assert "Traceback" not in running.output()


def submit(server: Server, webhook: str, prompt: str = "steps=1") -> Ticket:
    with server.client() as client:
        answer = client.post(f"/queue/{ENDPOINT}", params={"fal_webhook": webhook}, json={"prompt": prompt})
    assert answer.status_code == 200, answer.text
    return answer.json()


def verifies(server: Server, call: Call) -> bool:
    jwks = httpx.get(f"{server.url}/rest/.well-known/jwks.json", trust_env=False).json()
    return verify(call.headers, call.body, jwks, time.time())


def webhooks(server: Server, *words: str) -> str:
    done = run_cli("webhooks", *words, "--data-dir", str(server.data_dir))
    assert done.returncode == 0, done.stderr
    return done.stdout


def line_of(server: Server, ticket: Ticket, *words: str) -> str:
    """The line of the list that names a request."""
    listed = webhooks(server, "list", *words).splitlines()
    return next((line for line in listed if line.startswith(ticket["request_id"])), "")


def test_a_film_is_told_with_its_result_and_fals_signature(server: Server) -> None:
    with Receiver() as receiver:
        ticket = submit(server, receiver.url)
        call = receiver.next()
        assert verifies(server, call)
        told: dict[str, Any] = json.loads(call.body)
        assert told["payload"] == result(server, ticket).json()
        assert told["payload"]["video"]["url"].startswith(f"{server.url}/cdn/files/")
        assert (told["request_id"], told["status"]) == (ticket["request_id"], "OK")
        wait_until(lambda: "delivered" in line_of(server, ticket, "--all"), "the mark")
        assert line_of(server, ticket) == ""


def test_one_changed_byte_a_stale_time_or_a_swapped_key_fails_for_what_arrived(
    server: Server, tmp_path: Path
) -> None:
    with Receiver() as receiver:
        submit(server, receiver.url)
        call = receiver.next()
    jwks = httpx.get(f"{server.url}/rest/.well-known/jwks.json", trust_env=False).json()
    assert verify(call.headers, call.body, jwks, call.timestamp)
    for position in range(len(call.body)):
        changed = bytearray(call.body)
        changed[position] ^= 1
        assert not verify(call.headers, bytes(changed), jwks, call.timestamp)
    for name in ("Request-Id", "User-Id", "Timestamp", "Signature"):
        header = f"X-Fal-Webhook-{name}"
        value = call.headers[header]
        headers = {**call.headers, header: ("1" if value[0] != "1" else "2") + value[1:]}
        assert not verify(headers, call.body, jwks, int(headers["X-Fal-Webhook-Timestamp"])), name
    assert not verify(call.headers, call.body, jwks, call.timestamp + 301)
    assert not verify(call.headers, call.body, jwks, call.timestamp - 301)
    swapped = wire.jwks(SigningKeys(tmp_path, time.time()).published())
    assert not verify(call.headers, call.body, swapped, call.timestamp)


def test_a_cancelled_and_a_failed_request_are_told_as_errors(server: Server) -> None:
    with Receiver() as receiver:
        refused = submit(server, receiver.url, "refuse_at=1")
        told = json.loads(receiver.next().body)
        assert (told["request_id"], told["error"]) == (refused["request_id"], "Invalid status code: 422")
        assert told["payload"] == result(server, refused).json()
        running, waiting = submit(server, receiver.url, ENDLESS), submit(server, receiver.url, ENDLESS)
        wait_for(server, running, "IN_PROGRESS")
        with server.client() as client:
            for ticket in (waiting, running):
                assert client.put(httpx.URL(ticket["cancel_url"]).path).status_code == 202
                told = json.loads(receiver.next().body)
                assert (told["request_id"], told["status"]) == (ticket["request_id"], "ERROR")
                assert told["error"] == "Invalid status code: 499"


def test_w01_a_failing_receiver_is_tried_again_until_it_takes_it(server: Server) -> None:
    with Receiver(status(500), status(503), status(200)) as receiver:
        ticket = submit(server, receiver.url)
        calls = [receiver.next() for _ in range(3)]
        assert len({call.body for call in calls}) == 1
        assert all(verifies(server, call) for call in calls)
        wait_until(lambda: "delivered" in line_of(server, ticket, "--all"), "the mark")


def test_a_parked_webhook_is_listed_and_sent_again_on_demand(server: Server) -> None:
    with Receiver(status(410), status(200)) as receiver:
        ticket = submit(server, f"{receiver.url}?token=s3cret")
        first = receiver.next()
        line = wait_until(lambda: line_of(server, ticket), "the list")
        wait_until(lambda: "parked" in line_of(server, ticket), "the parking")
        assert "s3cret" not in line
        assert "answered 410" in line_of(server, ticket)
        assert "due now" in webhooks(server, "redeliver", ticket["request_id"])
        again = receiver.next()
        assert again.body == first.body
        assert verifies(server, again)
    assert "s3cret" not in server.output()


def test_redelivery_of_nothing_is_refused_with_what_to_do(server: Server) -> None:
    refused = run_cli("webhooks", "redeliver", "nobody", "--data-dir", str(server.data_dir))
    assert refused.returncode == 1
    assert "'nobody'" in refused.stderr and "webhooks list" in refused.stderr


def test_w07_keys_rotate_beside_a_running_server(server: Server) -> None:
    with Receiver() as receiver:
        submit(server, receiver.url)
        before = receiver.next()
        assert "2 keys are published" in webhooks(server, "rotate-key")
        submit(server, receiver.url)
        assert verifies(server, receiver.next()) and verifies(server, before)
        assert "the only one" in webhooks(server, "rotate-key", "--at-once")
        submit(server, receiver.url)
        assert verifies(server, receiver.next())
        assert not verifies(server, before)


@pytest.mark.parametrize("state", ["IN_PROGRESS", "COMPLETED"])
def test_f05_a_webhook_outlives_a_killed_server(tmp_path: Path, state: str) -> None:
    receiver = Receiver()
    receiver.answers = [receiver.hang, status(200)] if state == "COMPLETED" else [status(200)]
    # So long a lease that only a starting server frees what the last one was sending.
    env = {**ENV, "STILLMOTION_WEBHOOK_TIMEOUT_S": "600"}
    with receiver, Server(tmp_path / "data", engine=TIMED_ENGINE, env=env) as server:
        ticket = submit(server, receiver.url, "steps=20 pause=0.05")
        wait_for(server, ticket, state)
        first = receiver.next() if state == "COMPLETED" else None
        server.kill()
        server.restart()
        again = receiver.next()
        assert verifies(server, again)
        assert json.loads(again.body)["request_id"] == ticket["request_id"]
        assert first is None or (again.body, again.headers["X-Fal-Webhook-Request-Id"]) == (
            first.body,
            first.headers["X-Fal-Webhook-Request-Id"],
        )


def test_w05_a_private_receiver_is_refused_unless_allowed(tmp_path: Path) -> None:
    with (
        Receiver() as receiver,
        Server(tmp_path / "data", engine=TIMED_ENGINE) as server,
        server.client() as client,
    ):
        answer = client.post(
            f"/queue/{ENDPOINT}", params={"fal_webhook": receiver.url}, json={"prompt": "steps=1"}
        )
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["query", "fal_webhook"]


def test_more_names_are_looked_up_at_once_than_one_caller_is_likely_to_name(server: Server) -> None:
    """Names that nobody answers for hold their thread for as long as the name server is silent."""
    submit(server, "http://localhost:9/")
    # libuv gives names half of its threads.
    assert psutil.Process(server.process.pid).num_threads() > 2 * 32
