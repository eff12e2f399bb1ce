"""@fal-ai/serverless-client in Node: all that an app written for fal does, and may get wrong."""

import json
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageStat

from tests.conformance.conftest import JS
from tests.conformance.films import FilmFacts, download
from tests.conformance.programs import Outcome, outcomes, run
from tests.receiver import Receiver, verify
from tests.server import Server

CURRENT = "@fal-ai/serverless-client"
OLD = "serverless-client-0.9"
#: What every version of the package does; the rest is tried with the current one.
COMMON = (
    "subscribe",
    "run",
    "submit",
    "uploaded_file",
    "data_uri",
    "out_of_range",
    "forgotten_input",
    "webhook",
    "webhook_sample",
)
CURRENT_ONLY = (
    "image_address",
    "blob",
    "cancel_queued_and_running",
    "wrong_type",
    "odd_size",
    "no_prompt",
    "not_a_picture",
    "unfetchable_picture",
    "unknown_endpoint",
    "unknown_request",
    "early_result",
    "wrong_key",
)

#: Seconds on an idle machine; the test machine may be training at the same time.
FILM_TIMEOUT_S = 900

Outcomes = dict[str, Outcome]


def perform(node: Path, server: Server, package: str, actions: tuple[str, ...], **more: str) -> Outcomes:
    plan = {"package": package, "server": server.url, "actions": actions, **more}
    program = JS / "serverless_client.mjs"
    return outcomes(run([node, program, json.dumps(plan)], {"FAL_KEY": server.key}))


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.fixture(scope="module")
def did(node: Path, timed_server: Server, picture: Path, picture_url: str, receiver: Receiver) -> Outcomes:
    """One run of the program with the current package; each test looks at its own action."""
    where = {"picture": str(picture), "pictureUrl": picture_url, "webhookUrl": f"{receiver.url}?0.15.0"}
    return perform(node, timed_server, CURRENT, COMMON + CURRENT_ONLY, **where)


@pytest.fixture(scope="module")
def did_old(
    node: Path, timed_server: Server, picture: Path, picture_url: str, receiver: Receiver
) -> Outcomes:
    where = {"picture": str(picture), "pictureUrl": picture_url, "webhookUrl": f"{receiver.url}?0.9.3"}
    return perform(node, timed_server, OLD, COMMON, **where)


@pytest.fixture(scope="module", params=["did", "did_old"], ids=["0.15.0", "0.9.3"])
def any_did(request: pytest.FixtureRequest) -> Outcomes:
    return request.getfixturevalue(request.param)


def mean_colour(picture: Path) -> tuple[float, ...]:
    with Image.open(picture) as image:
        return tuple(ImageStat.Stat(image).mean)


def field_at_fault(outcome: Outcome) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the error and its only field error, after checking that it is the client's ValidationError."""
    error = outcome.refusal()
    assert (error["name"], error["status"]) == ("ValidationError", 422), error
    (field,) = error["fieldErrors"]
    assert field["msg"], field
    return error, field


def test_turbo_sample_logs_its_steps_and_ends_in_a_film(node: Path, pocket_server: Server) -> None:
    env = {"STILLMOTION_URL": pocket_server.url, "FAL_KEY": pocket_server.key}
    program = [node, JS / "turbo_sample.mjs"]
    *messages, subscribed = run(program, env, timeout_s=FILM_TIMEOUT_S).splitlines()
    output = json.loads(subscribed)["subscribed"]
    assert download(output["video"]) == FilmFacts(1024, 576, 25, Fraction(10))
    assert 0 <= output["seed"] < 2**53
    assert any("step" in message for message in messages), messages


def test_image_samples_make_films_and_the_forgotten_input_names_image_url(
    node: Path, pocket_server: Server, picture_url: str
) -> None:
    env = {"STILLMOTION_URL": pocket_server.url, "FAL_KEY": pocket_server.key}
    program = [node, JS / "image_sample.mjs", picture_url]
    *_, subscribed, quick, uploaded, refused = run(program, env, timeout_s=FILM_TIMEOUT_S).splitlines()
    output = json.loads(subscribed)["subscribed"]
    assert download(output["video"]) == FilmFacts(1024, 576, 25, Fraction(25))
    output = json.loads(quick)["quick"]
    assert (output["seed"], download(output["video"])) == (3, FilmFacts(1024, 576, 25, Fraction(8)))
    kept = httpx.get(json.loads(uploaded)["uploaded"])
    assert (kept.content, kept.headers["content-type"].split(";")[0]) == (b"Hello, World!", "text/plain")
    error = json.loads(refused)["refused"]
    assert (error["name"], error["status"]) == ("ValidationError", 422)
    assert [field["loc"][-1] for field in error["fieldErrors"]] == ["image_url"]


def test_subscribe_returns_the_film_as_asked(any_did: Outcomes, timed_server: Server) -> None:
    outcome = any_did["subscribe"]
    output = outcome.film()
    assert output["seed"] == 7
    assert output["video"]["url"].startswith(f"{timed_server.url}/cdn/files/")
    assert download(output["video"]) == FilmFacts(320, 256, 25, Fraction(12))
    assert outcome.value["seen"][-1] == "COMPLETED"


def test_run_answers_with_the_film_itself(any_did: Outcomes) -> None:
    output = any_did["run"].film()
    assert (output["seed"], download(output["video"]).width) == (7, 512)


def test_submit_answers_with_a_place_in_the_queue_and_reachable_addresses(
    any_did: Outcomes, timed_server: Server
) -> None:
    value = any_did["submit"].value
    submitted = value["submitted"]
    app = f"{timed_server.url}/queue/fal-ai/fast-svd-lcm/requests/{submitted['request_id']}"
    assert submitted["status"] == "IN_QUEUE"
    assert isinstance(submitted["queue_position"], int)
    assert submitted["response_url"] == app
    assert (submitted["status_url"], submitted["cancel_url"]) == (f"{app}/status", f"{app}/cancel")
    assert value["last"]["metrics"]["inference_time"] >= 0
    assert {"message", "timestamp", "level", "source", "labels"} <= value["last"]["logs"][0].keys()
    assert value["output"]["seed"] == 11


def test_a_submit_with_a_webhook_url_is_told_its_result(
    any_did: Outcomes, timed_server: Server, receiver: Receiver
) -> None:
    submitted = any_did["webhook"].film()
    call = receiver.next()
    told = json.loads(call.body)
    assert (told["request_id"], told["status"]) == (submitted["request_id"], "OK")
    assert told["gateway_request_id"] == submitted["gateway_request_id"]
    assert download(told["payload"]["video"]).frames == 25
    jwks = httpx.get(f"{timed_server.url}/rest/.well-known/jwks.json").json()
    assert verify(call.headers, call.body, jwks, time.time())


def test_the_submit_sample_of_fals_page_is_accepted_as_it_stands(any_did: Outcomes) -> None:
    submitted = any_did["webhook_sample"].film()
    assert (submitted["status"], bool(submitted["request_id"])) == ("IN_QUEUE", True)


@pytest.mark.parametrize("action", ["uploaded_file", "data_uri"])
def test_a_picture_reaches_the_model_in_every_version(any_did: Outcomes, action: str, picture: Path) -> None:
    film = download(any_did[action].film()["video"])
    assert film.frames == 25
    assert film.corner == pytest.approx(mean_colour(picture), abs=8)


def test_an_uploaded_picture_has_an_address_here(did: Outcomes, timed_server: Server) -> None:
    value = did["uploaded_file"].value
    assert value["url"].startswith(f"{timed_server.url}/cdn/files/")
    assert value["output"]["seed"] == 5


@pytest.mark.parametrize(("action", "fps"), [("image_address", 10), ("blob", 25), ("data_uri", 30)])
def test_a_picture_by_address_blob_or_data_uri_makes_a_film(
    did: Outcomes, action: str, fps: int, picture: Path
) -> None:
    film = download(did[action].film()["video"])
    assert (film.frames, film.fps) == (25, fps)
    assert film.corner == pytest.approx(mean_colour(picture), abs=8)


def test_a_cancelled_request_ends_whether_it_waited_or_ran(did: Outcomes) -> None:
    value = did["cancel_queued_and_running"].value
    assert (value["waiting"]["status"], value["waiting"]["queue_position"]) == ("IN_QUEUE", 0)
    for end in (value["queuedEnd"], value["runningEnd"]):
        assert end["last"]["error_type"] == "client_cancelled"
        assert end["last"]["error"]
        assert (end["resultStatus"], end["resultBody"]["error_type"]) == (499, "client_cancelled")
    assert value["again"] == {"status": 400, "body": {"status": "ALREADY_COMPLETED"}}


@pytest.mark.parametrize(
    ("action", "field", "kind"),
    [
        ("out_of_range", "motion_bucket_id", "less_than_equal"),
        ("wrong_type", "fps", "int_parsing"),
        ("no_prompt", "prompt", "missing"),
        ("forgotten_input", "image_url", "missing"),
        ("not_a_picture", "image_url", "unsupported_image_format"),
        ("unfetchable_picture", "image_url", "file_download_error"),
    ],
)
def test_a_bad_input_names_its_field(did: Outcomes, action: str, field: str, kind: str) -> None:
    _, at_fault = field_at_fault(did[action])
    assert (at_fault["loc"], at_fault["type"]) == (["body", field], kind)


def test_a_bad_input_names_its_field_in_the_old_version_too(did_old: Outcomes) -> None:
    assert field_at_fault(did_old["out_of_range"])[1]["ctx"] == {"le": 255}
    assert field_at_fault(did_old["forgotten_input"])[1]["loc"][-1] == "image_url"


def test_the_forgotten_input_is_found_by_get_field_errors(did: Outcomes) -> None:
    assert field_at_fault(did["forgotten_input"])[0]["namesImageUrl"] == 1


def test_an_odd_size_is_refused(did: Outcomes) -> None:
    assert "video_size" in field_at_fault(did["odd_size"])[1]["loc"]


@pytest.mark.parametrize(
    ("action", "status"),
    [("wrong_key", 401), ("unknown_endpoint", 404), ("unknown_request", 404), ("early_result", 400)],
)
def test_other_refusals_are_api_errors_with_a_body(did: Outcomes, action: str, status: int) -> None:
    error = did[action].refusal()
    assert (error["name"], error["status"]) == ("ApiError", status)
    assert error["body"]
    assert error["message"], "the reason phrase is the message a caller sees"


def test_a_result_asked_too_early_says_what_other_tools_match_on(did: Outcomes) -> None:
    assert did["early_result"].refusal()["body"]["detail"] == "Request is still in progress"
