"""Every cell of the conformance matrix; `make conformance` prints it as a table."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.matrix import ACTIONS, BASE, JS, KEY, ROWS, Row, Site
from tests.conformance.programs import Outcome
from tests.server import Server

CELLS = [
    pytest.param(row, action, id=f"{row.name}-{action}")
    for row in ROWS
    if row.barrier() is None
    for action in ACTIONS
    if action not in row.cannot
]


def is_film(value: dict[str, Any]) -> bool:
    """The file behind the address is whole and an MP4, made with the seed that was given."""
    return (value["seed"], value["whole"], value["box"]) == (7, True, "ftyp")


def is_subscribed(value: dict[str, Any]) -> bool:
    return is_film(value) and value["last"] == "COMPLETED" and value["lines"] > 0


def is_cancelled(value: dict[str, Any]) -> bool:
    return value == {"kind": "client_cancelled", "status": 499}


#: What an action that goes well must have brought.
WELL: dict[str, Callable[[dict[str, Any]], bool]] = {
    "subscribe": is_subscribed,
    "subscribe_streaming": is_subscribed,
    "run": is_film,
    "stream": lambda value: is_film(value) and value["events"] >= 2,
    "submit": lambda value: is_subscribed(value) and value["first"] == "IN_QUEUE",
    "upload": lambda value: is_film(value) and value["same"],
    "upload_large": lambda value: value["same"],
    "blob": is_film,
    "cancel_queued": is_cancelled,
    "cancel_running": is_cancelled,
}


def names_field(error: dict[str, Any], field: str, kind: str) -> bool:
    [problem] = error["body"]["detail"]
    return (error["status"], problem["loc"], problem["type"]) == (422, ["body", field], kind)


#: How an action that is refused must end.
REFUSED: dict[str, Callable[[dict[str, Any]], bool]] = {
    "invalid": lambda error: names_field(error, "fps", "greater_than_equal"),
    "missing": lambda error: names_field(error, "prompt", "missing"),
    "wrong_key": lambda error: error["status"] == 401,
    "start_timeout": lambda error: (error["status"], error["body"]["error_type"]) == (504, "request_timeout"),
}


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest, node: Path, picture: Path) -> Iterator[Site]:
    """Our own server with the timed engine, or BASE; an app's backend comes when it is asked for."""
    server: Server | None = None if BASE else request.getfixturevalue("timed_server")
    started: list[subprocess.Popen[str]] = []
    ports: list[int] = []

    def backend() -> str:
        if not started:
            words = made.led([node, JS / "server_proxy.mjs"])
            env = {"FAL_KEY": made.key, "PATH": str(node.parent)}
            started.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env))
            assert started[0].stdout is not None
            ports.append(int(started[0].stdout.readline()))
        return f"http://127.0.0.1:{ports[0]}/svelte/api/fal/proxy"

    made = Site(
        base=server.url if server else BASE,
        key=server.key if server else KEY,
        server=server,
        node=node,
        picture=picture,
        backend=backend,
    )
    yield made
    for process in started:
        process.terminate()
        process.communicate()


@pytest.fixture(scope="module")
def did(site: Site) -> Callable[[Row], dict[str, Outcome]]:
    """What each row's program told; each runs once."""
    done: dict[str, dict[str, Outcome]] = {}

    def perform(row: Row) -> dict[str, Outcome]:
        if row.name not in done:
            done[row.name] = row.perform(site)
        return done[row.name]

    return perform


@pytest.mark.parametrize(("row", "action"), CELLS)
def test_cell(
    row: Row,
    action: str,
    site: Site,
    did: Callable[[Row], dict[str, Outcome]],
    record_property: Callable[[str, object], None],
) -> None:
    record_property("cell", (row.name, action))
    outcome = did(row)[action]
    if action in WELL:
        assert outcome.error is None, outcome.error
        assert WELL[action](outcome.value), outcome.value
        if not BASE and "url" in outcome.value:
            assert outcome.value["url"].startswith(row.files(site)), outcome.value
    else:
        assert REFUSED[action](outcome.refusal()), outcome.error
