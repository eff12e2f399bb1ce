"""The sender of webhooks: takes due deliveries out of the outbox, POSTs them, marks what came of it.

Invariants:
- at least once: a row is leased, sent, then marked; whoever dies in between leaves it to the next claim;
- the body is frozen by the first try, the signature made anew for each, with that try's own time;
- every address passes the guard at every try; redirects are not followed;
- one time limit covers lookup, connection, sending and the answer; a slow host holds its own places alone;
- the status line decides: any 2xx acknowledges, 410 ends the tries. The rest of the answer is read (up to
  64 KiB, for the receiver's comfort) and forgotten.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpcore
import httpx
from sqlalchemy import Connection

from stillmotion import __version__
from stillmotion.clock import Clock
from stillmotion.errors import StoreUnavailable
from stillmotion.net.guard import (
    CONNECT_TIMEOUT_S,
    AddressRefused,
    AllowList,
    NameUnknown,
    guarded_pool,
    parse_url,
)
from stillmotion.settings import Settings
from stillmotion.signatures import Seal, SigningKeys
from stillmotion.store import outbox
from stillmotion.store.files import get_file
from stillmotion.store.open import Store
from stillmotion.store.outbox import Delivery
from stillmotion.store.queue import get
from stillmotion.types import FileRecord, Request
from stillmotion.wakeup import Wakeup

#: The sender looks by itself this often; other processes may end requests too.
LOOK_S = 1.0
#: Deliveries under way at once, over all hosts.
MOST = 128
#: A lease outlives its try by this much, for the writes around it.
LEASE_MARGIN_S = 15.0
#: Bytes of an answer that are read (64 KiB).
ANSWER_BYTES = 64 * 1024
#: Longest pause a Retry-After may ask for (1 h), and longest of our own (6 h).
RETRY_AFTER_MOST_S, PAUSE_MOST_S = 3600.0, 6 * 3600.0

HEADERS = (
    ("User-Agent", f"stillmotion/{__version__}"),
    ("Content-Type", "application/json"),
    ("Accept-Encoding", "identity"),
    ("Connection", "close"),
)

log = logging.getLogger("stillmotion.webhooks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """How a delivery reads on the wire; the doors know, this floor does not."""

    #: From a finished request and its film, if it is still there.
    body: Callable[[Request, FileRecord | None], bytes]
    headers: Callable[[Seal], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one try; no error means acknowledged."""

    error: str | None
    #: Seconds the receiver asked us to wait.
    retry_after_s: float = 0.0
    final: bool = False


class Sender:
    """Sends for one server; belongs to one event loop."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        keys: SigningKeys,
        clock: Clock,
        wakeup: Wakeup,
        spelling: Spelling,
    ) -> None:
        self._settings = settings
        self._store = store
        self._keys = keys
        self._clock = clock
        self._wakeup = wakeup
        self._spelling = spelling
        self._allow = AllowList.parse(settings.webhook_allow)
        self._under_way: Counter[str] = Counter()

    async def run(self) -> None:
        """Send until cancelled; what is under way then is sent again by the next server."""
        async with asyncio.TaskGroup() as deliveries:
            while True:
                # Listening begins before looking, so that no ending falls between the two.
                hint = asyncio.create_task(self._wakeup.wait("webhook", LOOK_S))
                try:
                    for delivery in await self._claim():
                        self._under_way[delivery.host] += 1
                        deliveries.create_task(self._deliver(delivery))
                    await hint
                finally:
                    hint.cancel()

    async def _claim(self) -> list[Delivery]:
        now, steady = self._latest(), self._clock.steady()
        lease_s = self._settings.webhook_timeout_s + LEASE_MARGIN_S
        under_way = dict(self._under_way)
        try:
            return await self._store.write(
                lambda conn: outbox.claim_due(
                    conn,
                    now=now,
                    steady=steady,
                    lease_s=lease_s,
                    most=MOST - sum(under_way.values()),
                    per_host=self._settings.webhook_per_host,
                    under_way=under_way,
                )
            )
        except StoreUnavailable as error:
            log.warning("outbox not reachable: %s", error)
            return []

    async def _deliver(self, delivery: Delivery) -> None:
        began = self._clock.monotonic()
        try:
            try:
                verdict = await self._try_once(delivery)
            except StoreUnavailable:
                raise
            except Exception:
                # The delivery border: a fault of ours costs this delivery a try, and no other anything.
                log.exception("%s webhook broke", delivery.request_id)
                verdict = Verdict("fault of this server, see its log")
            await self._mark(delivery, verdict, (self._clock.monotonic() - began) * 1000)
        except StoreUnavailable as error:
            # Its lease lapses, and it is sent again.
            log.warning("%s webhook not marked: %s", delivery.request_id, error)
        finally:
            self._under_way[delivery.host] -= 1
            if not self._under_way[delivery.host]:
                del self._under_way[delivery.host]
            self._wakeup.notify("webhook")

    async def _try_once(self, delivery: Delivery) -> Verdict:
        request, film = await self._store.read(lambda conn: _facts(conn, delivery.request_id))
        body = delivery.body
        if body is None:
            fresh = self._spelling.body(request, film)
            body = await self._store.write(lambda conn: outbox.freeze(conn, request.id, fresh))
        seal = self._keys.seal(request.id, request.key_id, body, self._clock.now())
        try:
            return await self._post(delivery.url, body, self._spelling.headers(seal))
        except AddressRefused:
            return Verdict("address not allowed")
        except NameUnknown:
            return Verdict("host name not found")
        except TimeoutError:
            return Verdict(f"no answer within {self._settings.webhook_timeout_s:g} s")
        except (httpcore.ConnectError, httpcore.ConnectTimeout):
            return Verdict("no connection")
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError):
            return Verdict("connection broke or answer was no HTTP")

    async def _post(self, url: str, body: bytes, seal: Mapping[str, str]) -> Verdict:
        target = parse_url(url)
        address = httpcore.URL(
            scheme=target.scheme.encode(), host=target.host.encode(), port=target.port, target=target.path
        )
        headers = [
            ("Host", target.url.netloc.decode("ascii")),
            ("Content-Length", str(len(body))),
            *HEADERS,
            *seal.items(),
        ]
        timeouts = {"timeout": {"connect": CONNECT_TIMEOUT_S}}
        verdict: Verdict | None = None
        try:
            async with (
                asyncio.timeout(self._settings.webhook_timeout_s),
                guarded_pool(self._allow) as pool,
                pool.stream("POST", address, headers=headers, content=body, extensions=timeouts) as response,
            ):
                verdict = self._judge(response)
                read = 0
                async for chunk in response.aiter_stream():
                    read += len(chunk)
                    if read >= ANSWER_BYTES:
                        break
        except (TimeoutError, httpcore.NetworkError, httpcore.ProtocolError, OSError):
            if verdict is None:
                raise
        return verdict

    def _judge(self, response: httpcore.Response) -> Verdict:
        if 200 <= response.status < 300:
            return Verdict(None)
        asked = httpx.Headers(response.headers).get("retry-after", "")
        return Verdict(
            f"answered {response.status}",
            retry_after_s=read_retry_after(asked, self._clock.now()),
            final=response.status == 410,
        )

    async def _mark(self, delivery: Delivery, verdict: Verdict, ms: float) -> None:
        request_id, tries, now = delivery.request_id, delivery.tries, self._latest()
        if verdict.error is None:
            await self._store.write(lambda conn: outbox.delivered(conn, delivery, now))
            log.info("%s webhook delivered host=%s try=%d ms=%.0f", request_id, delivery.host, tries, ms)
            return
        error, due = verdict.error, None
        if not verdict.final and tries < self._settings.webhook_tries:
            due = now + max(pause_s(tries, self._settings.webhook_retry_base_s), verdict.retry_after_s)
        await self._store.write(lambda conn: outbox.failed(conn, delivery, error, now, due))
        after = "parked" if due is None else f"again in {due - now:.0f} s"
        log.info("%s webhook failed host=%s try=%d: %s, %s", request_id, delivery.host, tries, error, after)

    def _latest(self) -> float:
        # A wall clock that is set back must not put off what was due before.
        return max(self._clock.now(), self._clock.steady())


def _facts(conn: Connection, request_id: str) -> tuple[Request, FileRecord | None]:
    request = get(conn, request_id)
    assert request is not None, "an outbox row goes with its request"
    return request, None if request.result is None else get_file(conn, request.result["file"])


def pause_s(tries: int, base_s: float) -> float:
    """Double after each try, spread so that many do not come at once: ten tries take about two hours."""
    pause = min(base_s * 2 ** min(tries - 1, 32), PAUSE_MOST_S)
    return pause * random.uniform(0.8, 1.2)  # noqa: S311


def read_retry_after(value: str, now: float) -> float:
    """Read Retry-After (RFC 9110 section 10.2.3: seconds or a date), bounded; 0 for anything else."""
    value = value.strip()
    if value.isascii() and value.isdecimal():
        return min(float(value), RETRY_AFTER_MOST_S)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    wait_s = (moment - datetime.fromtimestamp(now, UTC)).total_seconds()
    return min(max(wait_s, 0.0), RETRY_AFTER_MOST_S)
