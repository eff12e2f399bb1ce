"""Addresses that keep sending wrong keys: answered 429 after a while, logged once a minute.

Every key is still checked, so that a good one from the same address always works; guessing is hopeless in
any case, and a wrong key costs one hash and one shared read.
"""

import logging
import math
from ipaddress import ip_address, ip_network

from starlette.requests import Request

from stillmotion.clock import Clock
from stillmotion.http.ways.edge import notes_of

log = logging.getLogger(__name__)

WINDOW_S = 60
#: Addresses remembered at once; the one not heard of for longest is forgotten first.
ADDRESSES = 4096
#: One customer's line; its lower half is theirs to choose.
IPV6_PREFIX = 64


class Strangers:
    def __init__(self, clock: Clock, per_minute: int) -> None:
        self._clock = clock
        self._per_minute = per_minute
        #: By network: when its minute began, and the wrong keys it sent since.
        self._seen: dict[str, tuple[float, int]] = {}

    def count(self, call: Request) -> int | None:
        """Count a call with a wrong key; return the seconds to wait once its address sent too many."""
        network = _network(call)
        now = self._clock.monotonic()
        began, wrong = self._seen.pop(network, (now, 0))
        if now - began >= WINDOW_S:
            began, wrong = now, 0
        wrong += 1
        self._seen[network] = began, wrong
        if len(self._seen) > ADDRESSES:
            del self._seen[next(iter(self._seen))]
        if wrong <= self._per_minute:
            return None
        if wrong == self._per_minute + 1:
            log.warning("%s sent %d wrong keys within a minute", network, wrong)
        notes_of(call).quiet = True
        return math.ceil(began + WINDOW_S - now)


def _network(call: Request) -> str:
    host = call.client.host if call.client is not None else "unknown"
    try:
        address = ip_address(host)
    except ValueError:
        return host
    return host if address.version == 4 else str(ip_network((address, IPV6_PREFIX), strict=False))
