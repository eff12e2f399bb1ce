import socket
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The loop that `serve` uses."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def silent_url() -> Iterator[str]:
    """A URL whose server takes the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/picture.png"
