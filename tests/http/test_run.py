"""The sync door."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection

from stillmotion.errors import StoreUnavailable
from stillmotion.store import queue
from stillmotion.types import Failure, Request, State
from tests.http.house import HQ, ROCKET, TEXT, TURBO, House

pytestmark = pytest.mark.anyio

DEADLINE_S = 10


async def claimed(house: House) -> Request:
    """Wait until a request can be claimed, and claim it."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            request = house.claim()
            if request is not None:
                return request
            await house.wakeup.wait("queue", 0.05)


async def test_trap_1_run_answers_the_bare_output_never_a_ticket(house: House) -> None:
    async with house.client() as client:
        calling = asyncio.create_task(client.post(f"/run/{TEXT}", json={**ROCKET, "seed": 3}))
        request = await claimed(house)
        assert request.attached
        film = await house.finish(request)
        answer = await calling
    assert answer.status_code == 200
    assert set(answer.json()) == {"video", "seed"}
    assert answer.json()["seed"] == 3
    assert answer.json()["video"]["url"].endswith(f"/cdn/files/{film.id}/lantern.mp4")
    assert answer.headers["x-fal-request-id"] == request.id
    assert answer.headers["x-stillmotion-fingerprint"] == "timed-cpu"


async def test_run_by_get_takes_its_input_from_the_query(house: House) -> None:
    async with house.client() as client:
        calling = asyncio.create_task(client.get(f"/run/{TEXT}?prompt=a+boat&steps=2&video_size=square"))
        request = await claimed(house)
        assert request.input["prompt"] == "a boat"
        assert request.input["steps"] == 2
        assert request.input["video_size"] == {"width": 512, "height": 512}
        await house.finish(request)
        assert (await calling).status_code == 200
        refused = await client.get(f"/run/{TEXT}?steps=two")
        assert refused.status_code == 422


async def test_two_sync_calls_are_two_requests_whatever_their_idempotency_key(house: House) -> None:
    named = {"Idempotency-Key": "a-1"}
    async with house.client() as client:
        post = [client.post(f"/run/{TEXT}", json=ROCKET, headers=named) for _ in range(2)]
        calling = [asyncio.create_task(call) for call in post]
        for _ in calling:
            await house.finish(await claimed(house))
        assert [(await call).status_code for call in calling] == [200, 200]


async def test_run_replays_the_failure_with_its_status(house: House) -> None:
    async with house.client() as client:
        calling = asyncio.create_task(
            client.post(f"/run/{HQ}", json={"image_url": "https://example.com/a.png"})
        )
        request = await claimed(house)
        house.fail(
            request,
            Failure(status=422, kind="image_load_error", message="Image load error", field="image_url"),
        )
        answer = await calling
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "image_url"]


async def test_run_answers_422_at_once_and_keeps_nothing(house: House) -> None:
    async with house.client() as client:
        answer = await client.post(f"/run/{TEXT}", json={})
    assert answer.status_code == 422
    assert answer.json() == {
        "detail": [
            {
                "loc": ["body", "prompt"],
                "msg": "Field required",
                "type": "missing",
                "url": "https://docs.fal.ai/errors/#missing",
            }
        ]
    }
    assert house.claim() is None


async def raw_run(house: House, left: asyncio.Event, suffix: str = "") -> list[dict[str, Any]]:
    """Call the app as a server would, with a client that leaves when `left` is set."""
    body = [{"type": "http.request", "body": b'{"prompt": "a boat"}', "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if body:
            return body.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": f"/run/{TEXT}{suffix}",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"authorization", f"Key {house.key}".encode())],
        "scheme": "http",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    await house.app(scope, receive, send)
    return sent


async def test_a_client_that_leaves_while_its_request_waits_cancels_it(house: House) -> None:
    left = asyncio.Event()
    calling = asyncio.create_task(raw_run(house, left))
    async with asyncio.timeout(DEADLINE_S):
        await house.wakeup.wait("queue", DEADLINE_S)
        left.set()
        sent = await calling
    assert sent[0]["status"] == 499
    assert house.claim() is None


@pytest.mark.parametrize("suffix", ["", "/stream"])
async def test_a_client_that_leaves_while_nothing_can_be_written_is_not_forgotten(
    house: House, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    write = house.store.write
    failures = 0

    async def unsteady(operation: Callable[[Connection], Any]) -> Any:
        nonlocal failures
        if failures == 0 and operation.__qualname__.startswith("cancel_request"):
            failures += 1
            raise StoreUnavailable("locked")
        return await write(operation)

    monkeypatch.setattr(house.store, "write", unsteady)
    left = asyncio.Event()
    calling = asyncio.create_task(raw_run(house, left, suffix))
    async with asyncio.timeout(DEADLINE_S):
        await house.wakeup.wait("queue", DEADLINE_S)
        left.set()
        sent = await calling
    assert (sent[0]["status"], failures) == (499, 1)
    assert house.claim() is None


async def test_a_server_that_stops_waits_for_no_cancel_that_cannot_be_written(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, tried = house.store.write, asyncio.Event()

    async def locked(operation: Callable[[Connection], Any]) -> Any:
        if operation.__qualname__.startswith("cancel_request"):
            tried.set()
            raise StoreUnavailable("locked")
        return await write(operation)

    monkeypatch.setattr(house.store, "write", locked)
    left = asyncio.Event()
    calling = asyncio.create_task(raw_run(house, left))
    async with asyncio.timeout(DEADLINE_S):
        await house.wakeup.wait("queue", DEADLINE_S)
        left.set()
        await tried.wait()
        house.stopping.set()
        await calling
    assert house.claim() is not None, "the next start cancels it"


async def test_a_client_that_leaves_while_its_request_runs_stops_it(house: House) -> None:
    left = asyncio.Event()
    calling = asyncio.create_task(raw_run(house, left))
    request = await claimed(house)
    woken = asyncio.create_task(house.wakeup.wait("worker", DEADLINE_S))
    left.set()
    await calling
    assert await woken
    assert house.row(request.id).cancel_at is not None


async def test_a_queued_request_is_never_cancelled_by_a_client_that_leaves(house: House) -> None:
    request_id = (await house.submit())["request_id"]
    assert not house.row(request_id).attached
    assert house.row(request_id).state is State.READY


async def test_an_ending_written_by_another_process_is_seen_without_a_hint(house: House) -> None:
    async with house.client() as client:
        calling = asyncio.create_task(client.post(f"/run/{TURBO}", json={"image_url": "http://a.example/"}))
        request = await claimed(house)
        house.wakeup.notify = lambda topic: None  # type: ignore[method-assign]
        await house.finish(request)
        answer = await calling
    assert answer.status_code == 200


@pytest.mark.parametrize("path", [f"/run/{TEXT}", f"/run/{TEXT}/stream"])
@pytest.mark.parametrize("reader", ["Watch", "find_output"])
async def test_a_read_that_fails_meanwhile_does_not_make_the_client_submit_again(
    house: House, monkeypatch: pytest.MonkeyPatch, reader: str, path: str
) -> None:
    read = house.store.read
    failures = 0

    async def unsteady(operation: Callable[[Connection], Any]) -> Any:
        nonlocal failures
        if failures == 0 and operation.__qualname__.startswith(reader):
            failures += 1
            raise StoreUnavailable("busy")
        return await read(operation)

    monkeypatch.setattr(house.store, "read", unsteady)
    async with house.client() as client:
        calling = asyncio.create_task(client.post(path, json=ROCKET))
        film = await house.finish(await claimed(house))
        answer = await calling
    assert (answer.status_code, failures) == (200, 1)
    assert f"/cdn/files/{film.id}/" in answer.text


async def test_run_takes_get_and_post_only(house: House) -> None:
    async with house.client() as client:
        answer = await client.put(f"/run/{TEXT}", json=ROCKET)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, POST"
    assert answer.json()["error_type"] == "method_not_allowed"


@pytest.mark.parametrize("path", [f"/run/{TEXT}", f"/run/{TEXT}/stream"])
async def test_a_passed_start_deadline_answers_504_and_says_that_it_was_the_callers(
    house: House, path: str
) -> None:
    async with house.client() as client:
        deadline = {"X-Fal-Request-Timeout": "2.5"}
        calling = asyncio.create_task(client.post(path, json=ROCKET, headers=deadline))
        async with asyncio.timeout(DEADLINE_S):
            await house.wakeup.wait("queue", DEADLINE_S)
        house.clock.advance(3)
        assert house.claim() is None
        now, steady = house.clock.now(), house.clock.steady()
        [late] = await house.store.write(lambda conn: queue.expire_waiting(conn, now, steady))
        house.wakeup.notify(f"request:{late}")
        answer = await calling
    assert answer.status_code == 504
    assert answer.headers["x-fal-request-timeout-type"] == "user"
    assert answer.headers["x-fal-request-id"] == late
    assert answer.json()["error_type"] == "request_timeout"


async def test_a_stopping_server_sends_sync_calls_away_and_cancels_their_requests(house: House) -> None:
    async with house.client() as client:
        calling = asyncio.create_task(client.post(f"/run/{TEXT}", json=ROCKET))
        async with asyncio.timeout(DEADLINE_S):
            await house.wakeup.wait("queue", DEADLINE_S)
        house.stopping.set()
        answer = await calling
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error_type"] == "server_stopping"
    assert house.claim() is None
