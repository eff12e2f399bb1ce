"""What a submit may name as its webhook, what is sent then, and the keys that verify it."""

import asyncio
import json
from typing import Any

import pytest

from stillmotion.http import wire
from stillmotion.http.requests import submit
from stillmotion.store import queue
from stillmotion.store.files import get_file, is_available
from stillmotion.types import Ending, Failure, Outcome
from tests.http.house import BASE, ROCKET, TEXT, House

pytestmark = pytest.mark.anyio

PUBLIC = "http://8.8.8.8/hook?id=1"


async def asked(house: House, webhook: str, slash: str = "", **settings: Any) -> tuple[int, dict[str, Any]]:
    house.rebuild(**settings)
    async with house.client() as client:
        answer = await client.post(f"/queue/{TEXT}{slash}", params={"fal_webhook": webhook}, json=ROCKET)
    return answer.status_code, answer.json()


@pytest.mark.parametrize("slash", ["", "/"])
async def test_a_submit_keeps_its_webhook(house: House, slash: str) -> None:
    code, body = await asked(house, PUBLIC, slash)
    assert code == 200
    assert house.row(body["request_id"]).webhook == PUBLIC


async def test_a_receivers_name_is_kept_as_the_guard_read_it(house: House) -> None:
    code, body = await asked(house, "http://bücher.webhook.invalid/")
    assert code == 200
    assert house.row(body["request_id"]).webhook == "http://xn--bcher-kva.webhook.invalid/"


async def test_a_receiver_whose_name_is_not_known_yet_is_accepted(house: House) -> None:
    code, body = await asked(house, "https://optional.webhook.invalid/for/results")
    assert code == 200
    assert house.row(body["request_id"]).webhook == "https://optional.webhook.invalid/for/results"


async def test_a_receiver_whose_name_is_slow_to_look_up_keeps_no_submit_waiting(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(*words: object, **named: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(submit, "LOOKUP_S", 0.05)
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", silent)
    async with asyncio.timeout(10):
        assert (await asked(house, "https://slow.webhook.example/"))[0] == 200


@pytest.mark.parametrize(
    "url",
    [
        "", "hook", "/hook", "//8.8.8.8/", "file:///etc/passwd", "ftp://8.8.8.8/", "http://", "http://u:p@8.8.8.8/",
        "http://8.8.8.8:99999/", "http://8.8.8.8/\n", "http://8.8.8.8\\@x/", "http://8.8.8.8/" + "x" * 9000,
        "http://127.0.0.1:3000/", "http://localhost/", "http://[::1]/", "http://169.254.169.254/latest/",
        "http://10.0.0.1/", "http://0x7f.1/", "http://127。0。0。1/", "http://[::ffff:10.0.0.1]/",
    ],
)  # fmt: skip
async def test_w05_a_webhook_that_would_never_be_sent_is_refused_by_name(house: House, url: str) -> None:
    code, body = await asked(house, url)
    assert code == 422
    (detail,) = body["detail"]
    assert detail["loc"] == ["query", "fal_webhook"]
    assert "STILLMOTION_WEBHOOK_ALLOW" in detail["msg"]
    assert house.claim() is None


@pytest.mark.parametrize("allowed", ["127.0.0.0/8", "localhost", "localhost:3000"])
async def test_an_operator_allows_private_receivers(house: House, allowed: str) -> None:
    url = "http://127.0.0.1:3000/" if "/" in allowed else "http://localhost:3000/"
    assert (await asked(house, url, webhook_allow=allowed))[0] == 200
    assert (await asked(house, "http://10.0.0.1/", webhook_allow=allowed))[0] == 422


async def test_a_sync_run_has_no_webhook(house: House) -> None:
    async with house.client() as client:
        answer = await client.post(f"/run/{TEXT}?fal_webhook=nonsense", json={"fps": 1})
    assert [detail["loc"] for detail in answer.json()["detail"]] == [["body", "prompt"]]


def sent(house: House, request_id: str) -> dict[str, Any]:
    row = house.row(request_id)
    film = None
    if row.result is not None:
        file_id = row.result["file"]
        film = house.store.read_now(lambda conn: get_file(conn, file_id))
        assert film is None or is_available(film, house.clock.now())
    return json.loads(wire.webhook(row, film))


@pytest.mark.parametrize("base", [BASE, "https://queue.fal.run"])
async def test_a_good_ending_is_sent_as_the_result_by_the_door_of_the_submit(house: House, base: str) -> None:
    async with house.client(base=base) as client:
        path = f"/queue/{TEXT}" if base == BASE else f"/{TEXT}"
        submitted = (await client.post(path, json=ROCKET)).json()
        claimed = house.claim()
        assert claimed is not None
        await house.finish(claimed)
        result = (await client.get(submitted["response_url"])).json()
    assert result["video"]["url"].startswith(f"{BASE}/cdn/" if base == BASE else "https://v3.fal.media/")
    assert sent(house, submitted["request_id"]) == {
        "request_id": submitted["request_id"],
        "gateway_request_id": submitted["gateway_request_id"],
        "status": "OK",
        "payload": result,
    }


@pytest.mark.parametrize(
    ("failure", "payload"),
    [
        (
            Failure(status=422, kind="image_load_error", message="no picture", field="image_url"),
            {
                "detail": [
                    {
                        "loc": ["body", "image_url"],
                        "msg": "no picture",
                        "type": "image_load_error",
                        "url": "https://docs.fal.ai/errors/#image_load_error",
                    }
                ]
            },
        ),
        (
            Failure(status=500, kind="runner_disconnected", message="it died"),
            {"detail": "it died", "error_type": "runner_disconnected"},
        ),
    ],
)
async def test_a_failure_is_sent_with_its_error_body(
    house: House, failure: Failure, payload: dict[str, Any]
) -> None:
    request_id = (await house.submit())["request_id"]
    claimed = house.claim()
    assert claimed is not None
    house.fail(claimed, failure)
    assert sent(house, request_id) == {
        "request_id": request_id,
        "gateway_request_id": request_id,
        "status": "ERROR",
        "error": f"Invalid status code: {failure.status}",
        "payload": payload,
    }


async def test_a_cancelled_request_is_sent_as_an_error(house: House) -> None:
    request_id = (await house.submit())["request_id"]
    house.store.write_now(lambda conn: queue.cancel(conn, request_id, house.clock.now()))
    body = sent(house, request_id)
    assert (body["status"], body["error"]) == ("ERROR", "Invalid status code: 499")
    assert body["payload"]["error_type"] == "client_cancelled"


@pytest.mark.parametrize(
    ("message", "context", "problem"),
    [("x" * 2**20, {}, "larger than"), ("x", {"size": float("nan")}, "cannot be written as JSON")],
)
async def test_w06_a_payload_that_cannot_be_sent_is_null_with_the_reason(
    house: House, message: str, context: dict[str, Any], problem: str
) -> None:
    await house.submit()
    claimed = house.claim()
    assert claimed is not None
    failure = Failure(status=422, kind="image_too_large", message=message, field="image_url", context=context)
    house.end(claimed, Ending(outcome=Outcome.ERROR, failure=failure))
    body = sent(house, claimed.id)
    assert body["payload"] is None
    assert problem in body["payload_error"]
    assert body["status"] == "ERROR"


async def test_w06_a_film_that_is_gone_leaves_an_ok_without_payload(house: House) -> None:
    await house.submit()
    claimed = house.claim()
    assert claimed is not None
    await house.finish(claimed)
    body = json.loads(wire.webhook(house.row(claimed.id), None))
    assert (body["status"], body["payload"]) == ("OK", None)
    assert "expired" in body["payload_error"]


@pytest.mark.parametrize(
    "url",
    [
        f"{BASE}/rest/.well-known/jwks.json",
        "https://rest.fal.ai/.well-known/jwks.json",
        "https://rest.alpha.fal.ai/.well-known/jwks.json",
    ],
)
async def test_the_keys_are_open_padded_and_cacheable_for_less_than_a_day(house: House, url: str) -> None:
    async with house.client(key=None) as client:
        answer = await client.get(url)
    assert answer.status_code == 200
    kept, _, seconds = answer.headers["cache-control"].partition("max-age=")
    assert (kept, int(seconds) <= 86400) == ("public, ", True)
    (key,) = answer.json()["keys"]
    assert (key["kty"], key["crv"], len(key["x"]), key["x"][-1]) == ("OKP", "Ed25519", 44, "=")


async def test_a_rotated_key_is_published_beside_the_old_one(house: House) -> None:
    house.signatures.rotate(house.clock.now(), at_once=False)
    async with house.client(key=None) as client:
        assert len((await client.get("/rest/.well-known/jwks.json")).json()["keys"]) == 2
