"""Server-sent events word for word: what a status stream and a sync stream tell, and when."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from stillmotion.store import queue
from stillmotion.types import Failure, Request, State
from tests.http.house import HQ, ROCKET, TEXT, TURBO, House
from tests.http.sse import DEADLINE_S, OpenStream

pytestmark = pytest.mark.anyio


def status_stream(house: House, request_id: str, query: str = "?logs=1", **more: Any) -> OpenStream:
    return OpenStream(house, f"/queue/{TURBO}/requests/{request_id}/status/stream{query}", **more)


def run_stream(house: House, endpoint: str = TEXT, query: str = "", **given: Any) -> OpenStream:
    return OpenStream(house, f"/run/{endpoint}/stream{query}", method="POST", given=given or ROCKET)


def notify(house: House, request: Request) -> None:
    house.wakeup.notify(f"request:{request.id}")


async def step(house: House, request: Request, number: int) -> None:
    """Log a step and tell it as progress, as a worker's renewal does."""
    house.log(request, f"step {number}/4")
    progress = {request.id: {"stage": "denoise", "step": number, "steps": 4}}
    held, until = [(request.id, request.attempt)], house.clock.steady() + 20
    await house.store.write(lambda conn: queue.renew(conn, held, until=until, progress=progress))
    notify(house, request)


async def claim(house: House) -> Request:
    async with asyncio.timeout(DEADLINE_S):
        while (request := house.claim()) is None:
            await house.wakeup.wait("queue", 0.05)
    notify(house, request)
    return request


@contextlib.asynccontextmanager
async def leaving_no_task() -> AsyncGenerator[None]:
    """Wait on the way out until every task begun within has ended."""
    before = asyncio.all_tasks()
    yield
    async with asyncio.timeout(DEADLINE_S):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0)


async def test_status_stream_tells_each_change_with_new_log_lines_only_and_ends_after_completed(
    house: House,
) -> None:
    request_id = (await house.submit())["request_id"]
    async with status_stream(house, request_id) as stream:
        await stream.begin()
        assert stream.status == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] == "no-cache, no-transform"
        assert stream.headers["x-accel-buffering"] == "no"
        assert stream.headers["x-fal-request-id"] == request_id
        assert stream.headers["access-control-allow-origin"] == "*"
        waiting = await stream.event()
        async with house.client() as client:
            polled = await client.get(f"/queue/{TURBO}/requests/{request_id}/status?logs=1")
        assert waiting == polled.json()
        assert (waiting["status"], waiting["queue_position"]) == ("IN_QUEUE", 0)
        request = await claim(house)
        assert (await stream.event())["status"] == "IN_PROGRESS"
        for number in (1, 2):
            house.log(request, f"step {number}/4 caf\xe9 \u2028")
            notify(house, request)
            told = await stream.event()
            assert [line["message"] for line in told["logs"]] == [f"step {number}/4 caf\xe9 \u2028"]
        await house.finish(request)
        [last] = await stream.rest()
    assert (last["status"], last["logs"]) == ("COMPLETED", [])
    assert last["metrics"]["inference_time"] >= 0
    assert stream.ended


async def test_trap_10_each_event_is_one_line_of_ascii_json(house: House) -> None:
    request_id = (await house.submit())["request_id"]
    request = await claim(house)
    house.log(request, "line\none \u00e9\u6f22 \ud83d\ude80")
    async with status_stream(house, request_id) as stream:
        await stream.begin()
        chunk = await stream.chunk()
    assert chunk.isascii()
    assert chunk.count(b"\n") == 2 and chunk.endswith(b"\n\n")
    assert json.loads(chunk.removeprefix(b"data: "))["request_id"] == request_id


async def test_status_stream_without_logs_keeps_the_key_and_is_silent_when_only_logs_come(
    house: House,
) -> None:
    request_id = (await house.submit())["request_id"]
    request = await claim(house)
    async with status_stream(house, request_id, "?logs=0") as stream:
        await stream.begin()
        assert (await stream.event())["logs"] == []
        house.log(request, "step 1/4")
        notify(house, request)
        await house.finish(request)
        [last] = await stream.rest()
    assert (last["status"], last["logs"]) == ("COMPLETED", [])


async def test_status_stream_of_a_finished_request_is_one_event(house: House) -> None:
    request_id = (await house.submit())["request_id"]
    request = await claim(house)
    house.log(request, "made")
    await house.finish(request)
    async with status_stream(house, request_id) as stream:
        await stream.begin()
        [only] = await stream.rest()
    assert (only["status"], [line["message"] for line in only["logs"]]) == ("COMPLETED", ["made"])


@pytest.mark.parametrize("cancelled", [False, True])
async def test_status_stream_ends_with_completed_and_the_error_when_there_is_no_film(
    house: House, cancelled: bool
) -> None:
    request_id = (await house.submit())["request_id"]
    async with status_stream(house, request_id) as stream:
        await stream.begin()
        await stream.event()
        if cancelled:
            async with house.client() as client:
                assert (await client.put(f"/queue/{TURBO}/requests/{request_id}/cancel")).status_code == 202
        else:
            request = await claim(house)
            house.fail(request, Failure(status=500, kind="internal_server_error", message="The model failed"))
        last = (await stream.rest())[-1]
    assert last["status"] == "COMPLETED"
    assert last["error_type"] == ("client_cancelled" if cancelled else "internal_server_error")
    assert stream.ended


async def test_position_in_the_queue_is_told_as_it_changes(house: House) -> None:
    first = (await house.submit())["request_id"]
    second = (await house.submit())["request_id"]
    async with status_stream(house, second) as stream:
        await stream.begin()
        assert (await stream.event())["queue_position"] == 1
        assert (await claim(house)).id == first
        # No hint names this request; the stream looks by itself about once a second.
        assert (await stream.event())["queue_position"] == 0


async def test_silence_is_broken_by_a_comment(house: House) -> None:
    request_id = (await house.submit())["request_id"]
    async with status_stream(house, request_id) as stream:
        await stream.begin()
        await stream.event()
        house.clock.advance(house.settings.sse_ping_s)
        assert await stream.chunk() == b": ping\n\n"


async def test_a_client_that_vanishes_frees_its_stream_and_never_cancels_a_queued_request(
    house: House,
) -> None:
    request_id = (await house.submit())["request_id"]
    async with leaving_no_task(), status_stream(house, request_id) as stream:
        await stream.begin()
        await stream.event()
    assert not stream.ended
    assert house.row(request_id).state is State.READY


async def test_a_stopping_server_breaks_streams_off_but_first_tells_what_is_done(house: House) -> None:
    done, waiting = [(await house.submit())["request_id"] for _ in range(2)]
    async with status_stream(house, done) as telling, status_stream(house, waiting) as silent:
        for stream in (telling, silent):
            await stream.begin()
            await stream.event()
        request = await claim(house)
        house.wakeup.notify = lambda topic: None  # type: ignore[method-assign]
        await house.finish(request)
        house.stopping.set()
        assert (await telling.rest())[-1]["status"] == "COMPLETED"
        assert all(event["status"] == "IN_QUEUE" for event in await silent.rest())
        assert telling.ended and not silent.ended


async def test_a_strangers_or_unknown_request_has_no_stream(house: House) -> None:
    request_id = (await house.submit())["request_id"]
    other = house.new_key("other")
    answers: list[tuple[int, bytes]] = []
    for key, asked in ((other, request_id), (house.key, "01890000-0000-7000-8000-000000000000")):
        async with status_stream(house, asked, key=key) as stream:
            await stream.begin()
            answers.append((stream.status, await stream.chunk()))
    assert answers == [(404, b'{"status":"NOT_FOUND"}')] * 2
    async with status_stream(house, request_id, key=None) as stream:
        await stream.begin()
        assert stream.status == 401


async def test_a_head_request_gets_the_headers_of_a_stream_and_ends(house: House) -> None:
    request_id = (await house.submit())["request_id"]
    async with status_stream(house, request_id, method="HEAD") as stream:
        await stream.begin()
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert await stream.chunk() == b"" and stream.ended


async def test_many_open_streams_leave_polls_their_readers(house: House) -> None:
    waiting = [(await house.submit())["request_id"] for _ in range(60)]
    async with leaving_no_task(), contextlib.AsyncExitStack() as open_streams:
        for request_id in waiting:
            stream = await open_streams.enter_async_context(status_stream(house, request_id))
            await stream.begin()
        async with house.client() as client:
            path = f"/queue/{TURBO}/requests/{waiting[-1]}/status"
            answers = await asyncio.gather(*(client.get(path) for _ in range(50)))
        assert {answer.status_code for answer in answers} == {202}


async def test_sync_stream_tells_steps_and_logs_and_last_the_bare_output(house: House) -> None:
    async with run_stream(house, **ROCKET, seed=3) as stream:
        request = await claim(house)
        assert request.attached
        await step(house, request, 1)
        await stream.begin()
        assert stream.status == 200
        assert stream.headers["x-fal-request-id"] == request.id
        first = await stream.event()
        assert first["status"] == "IN_PROGRESS"
        assert [line["message"] for line in first["logs"]] == ["step 1/4"]
        assert first["progress"] == {"stage": "denoise", "step": 1, "steps": 4}
        await step(house, request, 2)
        second = await stream.event()
        assert ([line["message"] for line in second["logs"]], second["progress"]["step"]) == (["step 2/4"], 2)
        film = await house.finish(request)
        *told, output = await stream.rest()
    assert [event["status"] for event in told] == ["COMPLETED"]
    assert set(output) == {"video", "seed"} and output["seed"] == 3
    assert output["video"]["url"].endswith(f"/cdn/files/{film.id}/lantern.mp4")
    assert stream.ended


async def test_sync_stream_of_a_quick_film_still_streams(house: House) -> None:
    async with run_stream(house) as stream:
        await house.finish(await claim(house))
        await stream.begin()
        events = await stream.rest()
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert [event.get("status") for event in events] == ["COMPLETED", None]
    assert "video" in events[-1]


async def test_a_wrong_input_is_a_422_before_any_stream_and_keeps_nothing(house: House) -> None:
    async with run_stream(house, steps="many") as stream:
        await stream.begin()
        assert stream.status == 422
        assert stream.headers["content-type"] == "application/json"
        detail = json.loads(await stream.chunk())["detail"]
    assert {tuple(item["loc"]) for item in detail} == {("body", "prompt"), ("body", "steps")}
    assert house.claim() is None


async def test_what_fails_before_the_first_step_is_an_ordinary_error(house: House) -> None:
    async with run_stream(house, HQ, image_url="https://example.com/a.png") as stream:
        request = await claim(house)
        reason = Failure(status=422, kind="image_load_error", message="Image load error", field="image_url")
        house.fail(request, reason)
        await stream.begin()
        body = json.loads(await stream.chunk())
    assert (stream.status, body["detail"][0]["loc"]) == (422, ["body", "image_url"])
    assert stream.headers["x-fal-request-id"] == request.id


async def test_a_run_that_fails_midway_tells_the_error_and_breaks_off(house: House) -> None:
    async with run_stream(house) as stream:
        request = await claim(house)
        await step(house, request, 1)
        await stream.begin()
        await stream.event()
        house.fail(request, Failure(status=500, kind="internal_server_error", message="The model failed"))
        completed, error = await stream.rest()
    assert (completed["status"], completed["error_type"]) == ("COMPLETED", "internal_server_error")
    assert not stream.ended
    async with house.client() as client:
        replayed = await client.get(f"/queue/{TURBO}/requests/{request.id}")
    assert error == {
        "type": "error",
        "message": "The model failed",
        "error": {"status": replayed.status_code, "body": replayed.json()},
    }


async def test_a_sync_stream_begins_after_a_while_even_when_nothing_has_moved(house: House) -> None:
    async with run_stream(house) as stream:
        async with asyncio.timeout(DEADLINE_S):
            await house.wakeup.wait("queue", DEADLINE_S)
        house.clock.advance(house.settings.sse_ping_s)
        await stream.begin()
        waiting = await stream.event()
    assert (waiting["status"], waiting["queue_position"], waiting["progress"]) == ("IN_QUEUE", 0, None)


@pytest.mark.parametrize("running", [False, True])
async def test_a_client_that_leaves_a_sync_stream_cancels_its_request(house: House, running: bool) -> None:
    async with leaving_no_task(), run_stream(house) as stream:
        async with asyncio.timeout(DEADLINE_S):
            await house.wakeup.wait("queue", DEADLINE_S)
        request = None
        if running:
            request = await claim(house)
            await step(house, request, 1)
            await stream.begin()
            await stream.event()
    if request is None:
        assert house.claim() is None
    else:
        assert house.row(request.id).cancel_at is not None


async def test_sync_stream_by_get_takes_its_input_from_the_query_and_other_methods_are_refused(
    house: House,
) -> None:
    async with OpenStream(house, f"/run/{TEXT}/stream?prompt=a+boat&steps=2") as stream:
        request = await claim(house)
        assert (request.input["prompt"], request.input["steps"]) == ("a boat", 2)
        await house.finish(request)
        await stream.begin()
        assert "video" in (await stream.rest())[-1]
    async with OpenStream(house, f"/run/{TEXT}/stream", method="DELETE") as refused:
        await refused.begin()
        assert (refused.status, refused.headers["allow"]) == (405, "GET, POST")


async def test_an_unknown_application_has_no_stream(house: House) -> None:
    async with run_stream(house, "fal-ai/no-such-model") as stream:
        await stream.begin()
        assert stream.status == 404
        assert "no-such-model" in json.loads(await stream.chunk())["detail"]
