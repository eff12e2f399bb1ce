from collections.abc import Iterator

import pytest

from tests.http.conftest import house as house
from tests.server import TIMED_ENGINE, Server

#: The one address of this machine that the server may reach, where a test's own web site answers.
ALLOWED = "127.0.0.2"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # Should a fetch reach the trap, which never answers, its test fails soon.
    env = {"STILLMOTION_FETCH_ALLOW": ALLOWED, "STILLMOTION_FETCH_TIMEOUT_S": "2"}
    with Server(tmp_path_factory.mktemp("security") / "data", engine=TIMED_ENGINE, env=env) as server:
        yield server
