"""Streams of the real clients: steps while they happen, last the film; errors, leaving, tokens, deadlines."""

import json
import ssl
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import JS
from tests.conformance.films import FilmFacts, download
from tests.conformance.programs import Outcome, outcomes, run
from tests.conformance.test_fal_client import HERE, led_here
from tests.server import Server

STEPS = [f"step {n}/4 (0.30 s)" for n in (1, 2, 3, 4)]
FILM = FilmFacts(320, 256, 25, Fraction(10))
PACKAGES = {
    "client": "@fal-ai/client",
    "serverless-client-0.15": "@fal-ai/serverless-client",
    "serverless-client-0.9": "serverless-client-0.9",
}
#: What each version of the JavaScript client can do; 0.9 knows no status stream, and takes a token for each
#: stream without being asked to.
ACTIONS = {
    "client": (
        "stream",
        "stream_with_token",
        "bad_input",
        "failing",
        "left",
        "subscribe",
        "start_timeout",
    ),
    "serverless-client-0.15": ("stream", "stream_with_token", "bad_input", "failing", "subscribe"),
    "serverless-client-0.9": ("stream", "bad_input"),
}
Did = dict[str, dict[str, Outcome]]


@pytest.fixture(scope="module")
def js(node: Path, timed_server: Server) -> Did:
    def perform(name: str) -> dict[str, Outcome]:
        plan = {"package": PACKAGES[name], "server": timed_server.url, "actions": ACTIONS[name]}
        return outcomes(run([node, JS / "streaming.mjs", json.dumps(plan)], {"FAL_KEY": timed_server.key}))

    return {name: perform(name) for name in PACKAGES}


@pytest.fixture(scope="module")
def python(timed_server: Server) -> Did:
    def perform(program: str) -> dict[str, Outcome]:
        actions = ("stream", "stream_bad_input", "stream_failing", "start_timeout")
        return outcomes(run([sys.executable, HERE / program, *actions], led_here(timed_server)))

    return {"sync": perform("fal_client_sync.py"), "async": perform("fal_client_async.py")}


def steps(events: list[dict[str, Any]]) -> list[int]:
    return [event["progress"]["step"] for event in events if event.get("progress")]


def check_told(events: list[dict[str, Any]]) -> None:
    """Steps in order as they happened, every log line once, last the bare output."""
    *told, output = events
    assert len(set(steps(told))) > 1 and steps(told) == sorted(steps(told))
    messages = [line["message"] for event in told for line in event["logs"]]
    assert [line for line in messages if line.startswith("step")] == STEPS
    assert told[-1]["status"] == "COMPLETED"
    assert output["seed"] == 7


@pytest.mark.parametrize(
    ("name", "action"),
    [(name, action) for name in PACKAGES for action in ACTIONS[name] if action.startswith("stream")],
)
def test_a_javascript_stream_tells_the_steps_and_last_the_film(js: Did, name: str, action: str) -> None:
    value = js[name][action].film()
    check_told(value["events"])
    assert value["last"] == value["events"][-1]
    assert download(value["last"]["video"]) == FILM
    if name == "client":
        assert value["requestId"] == value["events"][0]["request_id"]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_wrong_input_is_a_validation_error_before_a_javascript_stream(js: Did, name: str) -> None:
    error = js[name]["bad_input"].refusal()
    assert (error["name"], error["status"]) == ("ValidationError", 422)
    assert [field["loc"] for field in error["body"]["detail"]] == [["body", "fps"]]


@pytest.mark.parametrize("name", ["client", "serverless-client-0.15"])
def test_a_javascript_stream_that_fails_midway_rejects(js: Did, name: str) -> None:
    value = js[name]["failing"].film()
    assert value["failure"]["status"] == 500
    assert value["events"][-1]["error"]["status"] == 422


def test_a_client_that_aborts_its_stream_cancels_the_request(js: Did) -> None:
    assert js["client"]["left"].film()["error_type"] == "client_cancelled"


@pytest.mark.parametrize("name", ["client", "serverless-client-0.15"])
def test_subscribe_by_streaming_shows_each_line_once_and_returns_the_film(js: Did, name: str) -> None:
    value = js[name]["subscribe"].value
    assert download(value["output"]["video"]) == FILM
    # The client itself adds up the lines of all events.
    messages = value["seen"][-1]["messages"]
    assert [line for line in messages if line.startswith("step")] == STEPS
    statuses = [seen["status"] for seen in value["seen"]]
    assert statuses[-1] == "COMPLETED" and "IN_PROGRESS" in statuses


def test_a_passed_start_deadline_is_the_users_own_timeout(js: Did) -> None:
    value = js["client"]["start_timeout"].film()
    assert value["last"]["error_type"] == "request_timeout"
    for error in (value["run"], value["result"]):
        assert (error["status"], error["user"]) == (504, True)
        assert error["body"]["error_type"] == "request_timeout"


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_python_stream_tells_the_steps_and_last_the_film(
    python: Did, timed_server: Server, kind: str
) -> None:
    events = python[kind]["stream"].value
    check_told(events)
    trust = ssl.create_default_context(cafile=str(timed_server.data_dir / "tls" / "ca.pem"))
    assert download(events[-1]["video"], trust) == FILM


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_python_stream_never_takes_an_error_for_a_film(python: Did, kind: str) -> None:
    refused = python[kind]["stream_bad_input"].value
    # fal_client looks at the content type before the status, and hides the 422 behind its own error.
    assert (refused["error"], refused["events"]) == ("SSEError", [])
    failed = python[kind]["stream_failing"].value
    assert failed["error"] == "RemoteProtocolError"
    assert failed["events"][-1]["error"]["status"] == 422


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_passed_start_deadline_is_not_tried_again_by_python(python: Did, kind: str) -> None:
    for error in python[kind]["start_timeout"].value:
        assert (error["status"], error["type"]) == (504, "request_timeout")
