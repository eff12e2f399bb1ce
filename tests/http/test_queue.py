"""The queue routes word for word: every key in every state, the codes clients poll by."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection

from stillmotion.errors import StoreUnavailable
from stillmotion.store import queue
from stillmotion.types import Failure
from tests.http.house import BASE, HQ, ROCKET, TEXT, TURBO, House, png

pytestmark = pytest.mark.anyio


def urls(request_id: str, base: str = f"{BASE}/queue", app: str = TURBO) -> dict[str, str]:
    root = f"{base}/{app}/requests/{request_id}"
    return {"response_url": root, "status_url": f"{root}/status", "cancel_url": f"{root}/cancel"}


async def test_submit_answers_every_key_and_what_it_answered_is_on_disk(house: House) -> None:
    async with house.client() as client:
        answer = await client.post(f"/queue/{TEXT}", json=ROCKET)
    body = answer.json()
    request_id = body["request_id"]
    assert answer.status_code == 200
    assert body == {
        "status": "IN_QUEUE",
        "request_id": request_id,
        "gateway_request_id": request_id,
        **urls(request_id),
        "queue_position": 0,
        "logs": [],
        "metrics": {},
    }
    assert answer.headers["x-fal-request-id"] == request_id
    row = house.row(request_id)
    assert row.endpoint == TEXT and row.key_id == house.key.partition(":")[0]
    assert row.input["seed"] < 2**53
    assert {name: value for name, value in row.input.items() if name != "seed"} == {
        **ROCKET,
        "motion_bucket_id": 127,
        "cond_aug": 0.02,
        "steps": 4,
        "fps": 10,
        "video_size": {"width": 1024, "height": 576},
    }


async def test_f13_a_submit_whose_position_cannot_be_read_is_kept_and_says_so(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = house.store.read

    async def unsteady(operation: Callable[[Connection], Any]) -> Any:
        if operation.__qualname__.startswith("QueueRoutes.submit"):
            raise StoreUnavailable("disk I/O error")
        return await read(operation)

    monkeypatch.setattr(house.store, "read", unsteady)
    # A 503 would have said that nothing was kept.
    ticket = await house.submit()
    assert ticket["queue_position"] == 0
    assert house.row(ticket["request_id"]).endpoint == TEXT


async def test_trap_3_4_7_status_has_all_keys_an_array_of_logs_and_202_until_completed(house: House) -> None:
    first = (await house.submit())["request_id"]
    second = (await house.submit())["request_id"]
    async with house.client() as client:
        path = f"/queue/{TURBO}/requests/{second}/status?logs=1"
        waiting = await client.get(path)
        assert (waiting.status_code, waiting.headers["x-fal-request-id"]) == (202, second)
        assert waiting.json() == {
            "status": "IN_QUEUE",
            "request_id": second,
            **urls(second),
            "queue_position": 1,
            "logs": [],
            "metrics": {},
        }
        claimed = house.claim()
        assert claimed is not None and claimed.id == first
        running = house.claim()
        assert running is not None and running.id == second
        house.log(running, "first frame 0.31 s", "step 1/4 (0.12 s)")
        working = await client.get(path)
        assert working.status_code == 202
        assert working.json() == {
            "status": "IN_PROGRESS",
            "request_id": second,
            **urls(second),
            "queue_position": 0,
            "logs": [
                {
                    "message": message,
                    "timestamp": "2023-11-14T22:13:20.000000Z",
                    "level": "INFO",
                    "source": "USER",
                    "labels": {"level": "INFO", "source": "USER"},
                }
                for message in ("first frame 0.31 s", "step 1/4 (0.12 s)")
            ],
            "metrics": {},
        }
        house.log(running, "step 2/4 (0.12 s)")
        house.clock.advance(2.5)
        await house.finish(running)
        done = await client.get(path)
        assert done.status_code == 200
        assert done.json()["status"] == "COMPLETED"
        assert done.json()["metrics"] == {"inference_time": 2.5}
        assert "error" not in done.json()
        # Polling wants the whole log each time, and an array also when none was asked for.
        assert len(done.json()["logs"]) == 3
        assert (await client.get(path.replace("logs=1", "logs=true"))).json()["logs"] == done.json()["logs"]
        for quiet in ("logs=0", "logs=false", ""):
            answer = await client.get(path.replace("logs=1", quiet))
            assert answer.json() == {**done.json(), "logs": []}


async def test_result_is_the_bare_output_with_the_request_id(house: House) -> None:
    request_id = (await house.submit(**ROCKET, seed=7))["request_id"]
    path = f"/queue/{TURBO}/requests/{request_id}"
    async with house.client() as client:
        early = await client.get(path)
        assert (early.status_code, early.headers["x-fal-request-id"]) == (400, request_id)
        assert early.json()["detail"] == "Request is still in progress"
        claimed = house.claim()
        assert claimed is not None
        assert (await client.get(path)).status_code == 400
        film = await house.finish(claimed)
        answer = await client.get(path)
        assert answer.status_code == 200
        assert answer.json() == {
            "video": {
                "url": f"{BASE}/cdn/files/{film.id}/lantern.mp4",
                "content_type": "video/mp4",
                "file_name": "lantern.mp4",
                "file_size": film.size,
            },
            "seed": 7,
        }
        # Trap 24.
        assert answer.headers["x-fal-request-id"] == request_id
        assert answer.headers["x-stillmotion-fingerprint"] == "timed-cpu"
        assert (await client.get(answer.json()["video"]["url"])).status_code == 200


async def test_time_in_the_runner_and_on_the_device_is_told_apart_from_waiting(house: House) -> None:
    request_id = (await house.submit())["request_id"]
    claimed = house.claim()
    assert claimed is not None
    house.clock.advance(9)
    timings = {"queue": 4, "denoise": 3, "decode": 1, "close": 0.5, "publish": 0.25}
    await house.finish(claimed, timings=timings)
    async with house.client() as client:
        path = f"/queue/{TURBO}/requests/{request_id}"
        assert (await client.get(f"{path}/status")).json()["metrics"] == {"inference_time": 5.0}
        assert (await client.get(path)).headers["x-stillmotion-device-seconds"] == "4.000"


async def test_trap_2_11_every_spelling_of_a_request_reaches_it_without_a_redirect(house: House) -> None:
    request_id = (await house.submit())["request_id"]
    claimed = house.claim()
    assert claimed is not None
    await house.finish(claimed)
    async with house.client() as client:
        for app in (TURBO, TEXT):
            for slash in ("", "/"):
                root = f"/queue/{app}/requests/{request_id}"
                assert (await client.get(f"{root}/status{slash}")).status_code == 200
                assert (await client.get(f"{root}{slash}")).status_code == 200
                assert (await client.get(f"{root}/response{slash}")).status_code == 200
                assert (await client.put(f"{root}/cancel{slash}")).status_code == 400
        submitted = await client.post(f"/queue/{TEXT}/", json=ROCKET)
        assert submitted.status_code == 200
        other_app = await client.get(f"/queue/{HQ}/requests/{request_id}/status")
        assert other_app.status_code == 404


async def test_trap_5_17_a_failed_request_is_completed_and_its_result_replays_the_failure(
    house: House,
) -> None:
    request_id = (await house.submit(HQ, image_url="https://example.com/rocket.png"))["request_id"]
    claimed = house.claim()
    assert claimed is not None and claimed.picture == "https://example.com/rocket.png"
    house.fail(
        claimed,
        Failure(
            status=422,
            kind="file_too_large",
            message="The picture is too large.",
            field="image_url",
            context={"max_size": 25_000_000},
        ),
    )
    async with house.client() as client:
        status = await client.get(f"/queue/{HQ}/requests/{request_id}/status")
        assert status.status_code == 200
        assert status.json()["status"] == "COMPLETED"
        assert status.json()["error"] == "The picture is too large."
        assert status.json()["error_type"] == "file_too_large"
        result = await client.get(f"/queue/{HQ}/requests/{request_id}")
    assert result.status_code == 422
    assert result.json() == {
        "detail": [
            {
                "loc": ["body", "image_url"],
                "msg": "The picture is too large.",
                "type": "file_too_large",
                "url": "https://docs.fal.ai/errors/#file_too_large",
                "ctx": {"max_size": 25_000_000},
            }
        ]
    }
    assert result.headers["x-fal-error-type"] == "file_too_large"
    assert result.headers["x-fal-retryable"] == "false"
    assert result.headers["x-fal-request-id"] == request_id


async def test_trap_16_a_dead_runner_is_a_500_that_no_client_retries(house: House) -> None:
    request_id = (await house.submit())["request_id"]
    claimed = house.claim()
    assert claimed is not None
    house.fail(claimed, Failure(status=500, kind="runner_disconnected", message="The runner died 3 times."))
    async with house.client() as client:
        result = await client.get(f"/queue/{TURBO}/requests/{request_id}")
    assert result.status_code == 500
    assert result.json() == {"detail": "The runner died 3 times.", "error_type": "runner_disconnected"}
    assert result.headers["x-fal-error-type"] == "runner_disconnected"


async def test_a_passed_start_deadline_is_a_504_that_says_whose_it_was(house: House) -> None:
    async with house.client() as client:
        answer = await client.post(f"/queue/{TEXT}", json=ROCKET, headers={"X-Fal-Request-Timeout": "2.5"})
        request_id = answer.json()["request_id"]
        house.clock.advance(3)
        now = house.clock.now()
        assert house.store.write_now(lambda conn: queue.expire_waiting(conn, now, now)) == [request_id]
        status = await client.get(f"/queue/{TURBO}/requests/{request_id}/status")
        assert status.json()["error_type"] == "request_timeout"
        assert status.json()["metrics"] == {"inference_time": 0.0}
        result = await client.get(f"/queue/{TURBO}/requests/{request_id}")
    assert result.status_code == 504
    assert result.headers["x-fal-request-timeout-type"] == "user"
    assert result.json()["error_type"] == "request_timeout"


@pytest.mark.parametrize("seconds", ["", "soon", "nan", "inf", "0", "-1", "1e999"])
async def test_a_malformed_start_deadline_is_refused(house: House, seconds: str) -> None:
    async with house.client() as client:
        answer = await client.post(f"/queue/{TEXT}", json=ROCKET, headers={"X-Fal-Request-Timeout": seconds})
    assert answer.status_code == 400
    assert answer.json()["error_type"] == "bad_request"


async def test_trap_6_cancel_of_a_waiting_request_completes_it_at_once(house: House) -> None:
    request_id = (await house.submit())["request_id"]
    path = f"/queue/{TURBO}/requests/{request_id}"
    async with house.client() as client:
        answer = await client.put(f"{path}/cancel", headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
        assert answer.headers["x-fal-request-id"] == request_id
        status = await client.get(f"{path}/status")
        assert status.status_code == 200
        assert status.json()["status"] == "COMPLETED"
        assert status.json()["error_type"] == "client_cancelled"
        result = await client.get(path)
        assert result.status_code == 499
        assert result.json() == {
            "detail": "Request cancelled by the client.",
            "error_type": "client_cancelled",
        }
        assert result.headers["x-fal-error-type"] == "client_cancelled"
        again = await client.put(f"{path}/cancel")
        assert (again.status_code, again.json()) == (400, {"status": "ALREADY_COMPLETED"})
    assert house.claim() is None


async def test_cancel_of_a_waiting_request_wakes_all_whom_it_concerns(house: House) -> None:
    request_id = (await house.submit())["request_id"]
    topics = (f"request:{request_id}", "webhook", "queue")
    woken = [asyncio.create_task(house.wakeup.wait(topic, 10)) for topic in topics]
    async with house.client() as client:
        assert (await client.put(f"/queue/{TURBO}/requests/{request_id}/cancel")).status_code == 202
    assert all(await asyncio.gather(*woken))


async def test_cancel_of_a_running_request_asks_the_worker(house: House) -> None:
    request_id = (await house.submit())["request_id"]
    assert house.claim() is not None
    async with house.client() as client:
        for _ in range(2):
            answer = await client.put(f"/queue/{TURBO}/requests/{request_id}/cancel")
            assert (answer.status_code, answer.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    assert house.row(request_id).cancel_at is not None


@pytest.mark.parametrize(
    ("method", "ending", "allowed"),
    [
        ("POST", "/cancel", "PUT"),
        ("GET", "/cancel", "PUT"),
        ("POST", "/status", "GET, HEAD"),
        ("POST", "/status/stream", "GET, HEAD"),
        ("DELETE", "", "GET, HEAD"),
    ],
)
async def test_a_request_asked_by_another_method_is_a_405_that_names_the_right_one(
    house: House, method: str, ending: str, allowed: str
) -> None:
    path = f"/queue/{TURBO}/requests/{(await house.submit())['request_id']}{ending}"
    async with house.client() as client:
        answer = await client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


async def test_another_keys_request_answers_the_same_bytes_as_an_unknown_one(house: House) -> None:
    mine = (await house.submit())["request_id"]
    stranger = house.new_key("stranger")
    unknown = "01890000-0000-7000-8000-000000000000"
    async with house.client(stranger) as client:
        for method, ending in (("GET", "/status"), ("GET", ""), ("GET", "/response"), ("PUT", "/cancel")):
            answers = [
                await client.request(method, f"/queue/{TURBO}/requests/{request_id}{ending}")
                for request_id in (mine, unknown, "no-such-id", "a%00b")
            ]
            assert {answer.status_code for answer in answers} == {404}
            assert {answer.content for answer in answers} == {b'{"status":"NOT_FOUND"}'}
            names = [sorted(answer.headers) for answer in answers]
            assert all(found == names[0] for found in names)
    assert house.claim() is not None


async def test_low_priority_waits_behind_and_a_full_queue_refuses_who_asked_for_it(house: House) -> None:
    async with house.client() as client:
        low = await client.post(f"/queue/{TEXT}", json=ROCKET, headers={"x-fal-queue-priority": "low"})
        normal = await client.post(f"/queue/{TEXT}", json=ROCKET, headers={"x-fal-queue-priority": "normal"})
        first = house.claim()
        assert first is not None and first.id == normal.json()["request_id"] != low.json()["request_id"]
        odd = await client.post(f"/queue/{TEXT}", json=ROCKET, headers={"x-fal-queue-priority": "high"})
        assert odd.status_code == 400
        room = await client.post(f"/queue/{TEXT}?fal_max_queue_length=1", json=ROCKET)
        assert room.status_code == 200
        full = await client.post(f"/queue/{TEXT}?fal_max_queue_length=1", json=ROCKET)
        assert full.status_code == 429
        assert full.headers["x-fal-needs-retry"] == "1"
        odd = await client.post(f"/queue/{TEXT}?fal_max_queue_length=-1", json=ROCKET)
        assert odd.status_code == 400


async def test_headers_for_others_are_ignored(house: House) -> None:
    ignored = {
        "x-fal-store-io": "0",
        "x-fal-no-retry": "1",
        "x-fal-runner-hint": "a",
        "x-fal-retry-config": "{}",
        "x-app-fal-disable-fallback": "1",
    }
    async with house.client() as client:
        assert (await client.post(f"/queue/{TEXT}", json=ROCKET, headers=ignored)).status_code == 200


async def test_a_result_whose_film_has_expired_says_so(house: House) -> None:
    request_id = (await house.submit())["request_id"]
    claimed = house.claim()
    assert claimed is not None
    film = await house.finish(claimed)
    assert film.expires is not None
    house.clock.jump(film.expires - house.clock.now())
    async with house.client() as client:
        answer = await client.get(f"/queue/{TURBO}/requests/{request_id}")
        assert answer.status_code == 410
        assert answer.json()["error_type"] == "output_expired"
        assert (await client.get(f"/cdn/files/{film.id}/lantern.mp4")).status_code == 404


async def test_urls_follow_the_door_of_the_submit_not_of_the_later_call(house: House) -> None:
    async with house.client(base="https://queue.fal.run:8443") as client:
        submitted = (await client.post(f"/{TEXT}", json=ROCKET)).json()
    request_id = submitted["request_id"]
    expected = urls(request_id, "https://queue.fal.run:8443")
    assert {name: submitted[name] for name in expected} == expected
    claimed = house.claim()
    assert claimed is not None
    film = await house.finish(claimed)
    async with house.client() as client:
        status = (await client.get(f"/queue/{TURBO}/requests/{request_id}/status")).json()
        assert {name: status[name] for name in expected} == expected
        result = (await client.get(f"/queue/{TURBO}/requests/{request_id}")).json()
    assert result["video"]["url"] == f"https://v3.fal.media:8443/files/{film.id}/lantern.mp4"
    async with house.client(None, base="https://v3.fal.media:8443") as client:
        assert (await client.get(f"/files/{film.id}/lantern.mp4")).status_code == 200


async def test_a_picture_in_the_input_never_lands_in_the_row(house: House) -> None:
    import base64

    uri = "data:image/png;base64," + base64.b64encode(png()).decode()
    row = house.row((await house.submit(HQ, image_url=uri))["request_id"])
    assert row.picture is not None and row.picture.startswith("file:")
    assert "image_url" not in row.input
    assert len(repr(row)) < 2000
