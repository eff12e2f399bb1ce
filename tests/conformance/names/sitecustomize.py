"""Leads names to this machine in a Python program that knows nothing of it, as a line of /etc/hosts does.

Python imports a module of this name before any program. MAPPED_NAMES holds the names, MAPPED_PORT stands
for 443, which tests may not bind.
"""

import os
import socket
from typing import Any

NAMES = os.environ["MAPPED_NAMES"].split()
HERE = "127.0.0.1"

_look_up = socket.getaddrinfo
_connect = socket.socket.connect


def look_up(host: Any, *args: Any, **options: Any) -> Any:
    name = host.decode("ascii") if isinstance(host, bytes) else host
    return _look_up(HERE if name in NAMES else host, *args, **options)


def connect(self: socket.socket, address: Any) -> None:
    _connect(self, (HERE, int(os.environ["MAPPED_PORT"])) if address == (HERE, 443) else address)


socket.getaddrinfo = look_up
socket.socket.connect = connect  # type: ignore[method-assign]
