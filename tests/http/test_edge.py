"""Keys, CORS, request ids, health, the front page, logs, and what happens when something breaks."""

import errno
import logging
from html.parser import HTMLParser

import pytest

from stillmotion.errors import StoreUnavailable
from stillmotion.types import Readiness, Warmth
from tests.http.house import HQ, ROCKET, TEXT, TURBO, House

pytestmark = pytest.mark.anyio


async def test_a_call_without_a_good_key_is_a_401_in_fals_words(house: House) -> None:
    key_id, _, secret = house.key.partition(":")
    strange = "No user found for Key ID and Secret"
    malformed = "Invalid Key Authorization header format. Expected '<key_id>:<key_secret>'."
    cases = [
        (f"Key {key_id}:wrong", strange),
        (f"Key {key_id}:{secret[:-1]}{'0' if secret[-1] != '0' else '1'}", strange),
        (f"Key nobody:{secret}", strange),
        (f"Key {key_id}", malformed),
        ("Key", malformed),
        (f"Basic {house.key}", malformed),
        (house.key, malformed),
        (f"Key {key_id}:\xff\xfe", strange),
        ("", malformed),
    ]
    async with house.client(None) as client:
        for header, text in cases:
            for method, path in (("POST", f"/queue/{TEXT}"), ("GET", f"/queue/{TURBO}/requests/x/status")):
                answer = await client.request(
                    method, path, headers=[(b"Authorization", header.encode("latin-1"))]
                )
                assert answer.status_code == 401
                assert answer.json() == {"detail": text, "error_type": "unauthorized"}
        missing = await client.post(f"/run/{TEXT}", json=ROCKET)
        assert missing.status_code == 401
        assert missing.json()["detail"].startswith(f'Cannot access application "{TEXT}"')
    assert house.claim() is None


async def test_bearer_with_the_same_credential_is_taken(house: House) -> None:
    async with house.client(None) as client:
        answer = await client.post(
            f"/queue/{TEXT}", json=ROCKET, headers={"Authorization": f"Bearer {house.key}"}
        )
    assert answer.status_code == 200


async def test_trap_22_a_preflight_needs_no_key_and_every_answer_is_shared(house: House) -> None:
    async with house.client(None) as client:
        asked = "authorization, content-type, x-fal-queue-priority"
        preflight = await client.options(
            f"/queue/{TEXT}",
            headers={
                "Origin": "https://app.example",
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": asked,
            },
        )
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == "*"
        assert preflight.headers["access-control-allow-headers"] == asked
        assert "PUT" in preflight.headers["access-control-allow-methods"]
        plain = await client.options("/rest/storage/upload/initiate")
        assert "authorization" in plain.headers["access-control-allow-headers"]
        for method, path, status in (
            ("POST", f"/queue/{TEXT}", 401),
            ("GET", "/nowhere", 404),
            ("DELETE", "/healthz", 405),
            ("GET", f"/cdn/files/{'0' * 32}/a.png", 404),
            ("PUT", f"/cdn/uploads/{'0' * 32}", 403),
            ("GET", "/", 200),
        ):
            answer = await client.request(method, path)
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == "*"
            assert "x-fal-request-id" in answer.headers["access-control-expose-headers"]


async def test_trap_8_24_every_answer_has_a_request_id_and_every_error_is_json(house: House) -> None:
    seen: set[str] = set()
    async with house.client() as client:
        for method, path in (
            ("GET", "/nowhere"),
            ("GET", "/queue"),
            ("GET", f"/queue/{TEXT}"),
            ("DELETE", f"/queue/{HQ}"),
            ("POST", f"/queue/{TURBO}/requests/x/status"),
            ("PATCH", "/healthz"),
            ("GET", "/run/fal-ai/nope"),
            ("GET", "/cdn/files/x/y"),
            ("GET", "/cdn/uploads/x"),
        ):
            answer = await client.request(method, path)
            assert 400 <= answer.status_code < 500
            assert answer.headers["content-type"] == "application/json"
            assert isinstance(answer.json(), dict)
            seen.add(answer.headers["x-fal-request-id"])
    assert len(seen) == 9


async def test_health_is_up_and_readiness_tells_its_reason(house: House) -> None:
    async with house.client(None) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok", "version": "0.1.0"}
        house.ready = Readiness(
            ready=True, reason="ready on cpu", runners=[Warmth(device="cpu", warm=1, sizes=5)]
        )
        answer = await client.get("/readyz")
        assert answer.status_code == 200
        assert answer.json()["runners"] == [{"device": "cpu", "warm": 1, "sizes": 5}]
        house.ready = Readiness(ready=False, reason="the runner loads its weights")
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json() == {
            "ready": False,
            "reason": "the runner loads its weights",
            "profile": "pocket",
            "runners": [],
        }
        assert (await client.get("/healthz")).status_code == 200


async def test_the_front_page_says_what_runs_here(house: House) -> None:
    house.ready = Readiness(ready=False, reason="<weights> missing")
    async with house.client(None) as client:
        answer = await client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = answer.text
    for word in (TEXT, TURBO, HQ, "motion_bucket_id", "landscape_16_9", "http://127.0.0.1:8000/queue"):
        assert word in page
    assert "&lt;weights&gt; missing" in page
    assert "<script" not in page and "src=" not in page
    HTMLParser().feed(page)


async def test_a_database_that_takes_no_write_is_a_503_and_leaves_no_bytes(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(operation: object) -> object:
        raise StoreUnavailable("disk full")

    async with house.client() as client:
        assert (await client.post(f"/queue/{TEXT}", json=ROCKET)).status_code == 200
        monkeypatch.setattr(house.store, "write", refuse)
        picture = "data:image/gif;base64,R0lGODlhCAAIAIAAAP///wAAACwAAAAACAAIAAACB4SPqcvtXQA7"
        for endpoint, given in ((TEXT, ROCKET), (HQ, {"image_url": picture})):
            answer = await client.post(f"/queue/{endpoint}", json=given)
            assert answer.status_code == 503, answer.text
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["x-fal-error-type"] == "store_unavailable"
            assert "disk full" not in answer.text
    assert [path for path in (house.data_dir / "media").rglob("*") if path.is_file()] == []


async def test_a_full_disk_is_a_507_that_keeps_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(key: str, chunks: object, max_bytes: int) -> object:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(house.media, "receive", refuse)
    picture = "data:image/gif;base64,R0lGODlhCAAIAIAAAP///wAAACwAAAAACAAIAAACB4SPqcvtXQA7"
    async with house.client() as client:
        answer = await client.post(f"/queue/{HQ}", json={"image_url": picture})
    assert answer.status_code == 507
    assert answer.json()["error_type"] == "insufficient_storage"
    assert "make room" in answer.json()["detail"] and "device" not in answer.text
    assert house.claim() is None
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("fault", [RuntimeError("a bug"), OSError(errno.EACCES, "Permission denied")])
async def test_what_no_one_expected_is_a_500_in_fals_shape_and_one_log_entry(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    async def explode(operation: object) -> object:
        raise fault

    monkeypatch.setattr(house.store, "read", explode)
    async with house.client() as client:
        answer = await client.get(f"/queue/{TURBO}/requests/x/status")
    assert answer.status_code == 500
    assert answer.json() == {"detail": "Internal Server Error", "error_type": "internal_error"}
    assert answer.headers["access-control-allow-origin"] == "*"
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert answer.headers["x-fal-request-id"] in errors[0].getMessage()


async def test_no_secret_reaches_the_log_and_no_path_forges_a_line(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    picture = "R0lGODlhCAAIAIAAAP///wAAACwAAAAACAAIAAACB4SPqcvtXQA7"
    async with house.client() as client:
        await client.post(f"/queue/{TEXT}", json={"prompt": "a secret plan", "steps": 99})
        await client.post(f"/queue/{TEXT}", json={"prompt": "a secret plan"})
        await client.get(f"/run/{TEXT}?prompt=a+secret+plan&steps=99&fal_jwt_token=hidden-token")
        await client.post(f"/queue/{HQ}", json={"image_url": f"data:image/gif;base64,{picture}"})
        await client.post(f"/queue/{HQ}", json={"image_url": f"data:image/gif;base64,{picture}!"})
        urls = (await client.post("/rest/storage/upload/initiate", json={})).json()
        signature = urls["upload_url"].partition("signature=")[2]
        await client.put(urls["upload_url"], content=b"x")
        await client.put(urls["upload_url"], content=b"x")
        await client.get("/nowhere%0d%0aERROR forged")
        stranger = await client.get(f"/queue/{TURBO}/requests/x", headers={"Authorization": "Key a:b-wrong"})
        assert stranger.status_code == 401
    # The test's own HTTP client logs what it calls; everything else is the server's.
    served = [record for record in caplog.records if not record.name.startswith("http")]
    text = "\n".join(logging.Formatter("%(levelname)s %(message)s").format(record) for record in served)
    secret = house.key.partition(":")[2]
    for hidden in (secret, "secret plan", "secret+plan", "hidden-token", picture, signature, "b-wrong"):
        assert hidden not in text
    assert not [line for line in text.splitlines() if line.startswith("ERROR")]
    assert "Traceback" not in text
    lines = [record for record in served if record.name == "stillmotion.http"]
    assert len(lines) == 10
    assert all(record.getMessage().count("method=") == 1 for record in lines)


async def test_a_cancelled_answer_has_a_reason_phrase(house: House) -> None:
    from uvicorn.protocols.http import httptools_impl

    assert httptools_impl.STATUS_LINE[499] == b"HTTP/1.1 499 Client Closed Request\r\n"
