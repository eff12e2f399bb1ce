"""Hints that something changed, so that waiting costs no polling; losing one costs latency, never a request.

Topics: `queue` (a request may be claimed), `worker` (a cancel was asked), `webhook` (one may be due),
`request:{id}` (its state or log moved).
Every waiter also looks by itself about once a second, because other processes may write the same store.
"""

import asyncio
from collections import defaultdict


class Wakeup:
    """Belongs to one event loop; call it from that loop only."""

    def __init__(self) -> None:
        self._waiters: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)

    def notify(self, topic: str) -> None:
        for waiter in self._waiters.pop(topic, ()):
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, topic: str, timeout_s: float) -> bool:
        """Return True when `topic` was notified, False after `timeout_s`."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[topic].add(waiter)
        try:
            # Not wait_for: before Python 3.12 it loses a cancel that meets a notification.
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            return False
        finally:
            waiting = self._waiters.get(topic)
            if waiting is not None:
                waiting.discard(waiter)
                if not waiting:
                    del self._waiters[topic]
        return True
