"""fal_client for Python, sync and async, over TLS: three environment variables and nothing else."""

import ssl
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from tests.conformance.films import FilmFacts, download
from tests.conformance.programs import Outcome, outcomes, run
from tests.server import Server

HERE = Path(__file__).parent
ACTIONS = ("subscribe", "submit", "run", "cancel", "bad_input", "missing_input", "wrong_key")


def led_here(server: Server) -> dict[str, str]:
    return {
        "FAL_RUN_HOST": f"localhost:{server.tls_port}/run",
        "FAL_QUEUE_RUN_HOST": f"localhost:{server.tls_port}/queue",
        "SSL_CERT_FILE": str(server.data_dir / "tls" / "bundle.pem"),
        "FAL_KEY": server.key,
    }


@pytest.fixture(scope="module", params=["fal_client_sync.py", "fal_client_async.py"], ids=["sync", "async"])
def program(request: pytest.FixtureRequest) -> Path:
    return HERE / request.param


@pytest.fixture(scope="module")
def did(program: Path, timed_server: Server) -> dict[str, Outcome]:
    return outcomes(run([sys.executable, program, *ACTIONS], led_here(timed_server)))


@pytest.fixture(scope="module")
def trust(timed_server: Server) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(timed_server.data_dir / "tls" / "ca.pem"))


@pytest.mark.parametrize("action", ["subscribe", "submit", "run"])
def test_every_way_of_asking_returns_the_film(
    did: dict[str, Outcome], trust: ssl.SSLContext, timed_server: Server, action: str
) -> None:
    output = did[action].film()
    assert output["seed"] == 7
    assert output["video"]["url"].startswith(f"https://localhost:{timed_server.tls_port}/cdn/files/")
    assert download(output["video"], trust) == FilmFacts(320, 256, 25, Fraction(10))


def test_subscribe_shows_the_logs(did: dict[str, Outcome]) -> None:
    last = did["subscribe"].value["seen"][-1]
    assert last["kind"] == "Completed"
    assert last["error"] is None
    assert last["logs"][0]["message"]


def test_a_handle_follows_addresses_it_can_reach(did: dict[str, Outcome], timed_server: Server) -> None:
    value = did["submit"].value
    queue = f"https://localhost:{timed_server.tls_port}/queue/fal-ai/fast-svd-lcm/requests/"
    assert all(url.startswith(queue) for url in value["urls"])
    assert value["by_id"] == "Completed"
    assert value["last"]["metrics"]["inference_time"] >= 0


def test_a_cancelled_request_ends_whether_it_waited_or_ran(did: dict[str, Outcome]) -> None:
    value = did["cancel"].value
    assert value["position"] == {"position": 0}
    assert [end["error_type"] for end in value["ends"]] == ["client_cancelled"] * 2
    assert [(end["code"], end["type"]) for end in value["ends"]] == [(499, "client_cancelled")] * 2


def test_a_bad_input_names_its_field(did: dict[str, Outcome]) -> None:
    error = did["bad_input"].refusal()
    assert error["status"] == 422
    assert [(item["loc"], item["ctx"]) for item in error["message"]] == [(["body", "cond_aug"], {"ge": 0})]


def test_a_missing_prompt_is_named(did: dict[str, Outcome]) -> None:
    error = did["missing_input"].refusal()
    assert (error["status"], error["message"][0]["type"]) == (422, "missing")
    assert error["message"][0]["loc"] == ["body", "prompt"]


def test_a_wrong_key_is_refused_with_fals_words(did: dict[str, Outcome]) -> None:
    error = did["wrong_key"].refusal()
    assert (error["status"], error["message"]) == (401, "No user found for Key ID and Secret")


def test_a_client_that_gave_up_waiting_ends_and_lets_the_interpreter_exit(
    program: Path, timed_server: Server
) -> None:
    done = outcomes(run([sys.executable, program, "client_timeout"], led_here(timed_server), timeout_s=30))
    assert done["client_timeout"].value["request_id"]
    assert done["client_timeout"].value["seconds"] < 15
