"""`python -m tests.offline …` is the command line on a machine without a name server.

Generated input names hosts that somebody owns, and a name server that is asked too often keeps lookups
waiting. Here every name but this machine's own is unknown at once.
"""

import ipaddress
import socket
from typing import Any

import uvloop

from stillmotion.cli.main import main

OWN = ("localhost", socket.gethostname())
_look_up = uvloop.Loop.getaddrinfo


async def look_up(self: uvloop.Loop, host: Any, port: Any, **more: Any) -> Any:
    if host not in OWN:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None
    return await _look_up(self, host, port, **more)


if __name__ == "__main__":
    uvloop.Loop.getaddrinfo = look_up
    main()
