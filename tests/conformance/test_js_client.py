"""@fal-ai/client 1.10.1 in Node, pointed here by its requestMiddleware."""

import json
from fractions import Fraction
from pathlib import Path

import pytest

from tests.conformance.conftest import JS
from tests.conformance.films import FilmFacts, download
from tests.conformance.programs import Outcome, outcomes, run
from tests.server import Server

ACTIONS = ("subscribe", "run", "uploaded_file", "bad_input")


@pytest.fixture(scope="module")
def did(node: Path, timed_server: Server, picture: Path) -> dict[str, Outcome]:
    plan = {"server": timed_server.url, "picture": str(picture), "actions": ACTIONS}
    return outcomes(run([node, JS / "client.mjs", json.dumps(plan)], {"FAL_KEY": timed_server.key}))


@pytest.mark.parametrize("action", ["subscribe", "run"])
def test_answers_carry_the_film_and_the_request_id(did: dict[str, Outcome], action: str) -> None:
    value = did[action].film()
    assert value["requestId"]
    assert value["data"]["seed"] == 7
    assert download(value["data"]["video"]) == FilmFacts(320, 256, 25, Fraction(10))


def test_logs_arrive_while_waiting(did: dict[str, Outcome]) -> None:
    assert did["subscribe"].value["messages"]


def test_an_uploaded_picture_makes_a_film(did: dict[str, Outcome], timed_server: Server) -> None:
    value = did["uploaded_file"].film()
    assert value["url"].startswith(f"{timed_server.url}/cdn/files/")
    film = download(value["data"]["video"])
    assert (film.frames, film.fps) == (25, 25)


def test_a_bad_input_names_its_field_and_request(did: dict[str, Outcome]) -> None:
    error = did["bad_input"].refusal()
    assert (error["name"], error["status"]) == ("ValidationError", 422)
    assert [field["loc"] for field in error["fieldErrors"]] == [["body", "fps"]]
    assert error["requestId"]
