"""A running server with the timed engine, shared by the tests that leave it running."""

from collections.abc import Iterator

import pytest

from tests.server import TIMED_ENGINE, Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("served") / "data", engine=TIMED_ENGINE) as running:
        yield running
