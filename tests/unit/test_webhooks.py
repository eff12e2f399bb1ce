"""The sender against real receivers on loopback, by the settable clock; ids as in the list of faults."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from stillmotion.http import wire
from stillmotion.settings import Settings
from stillmotion.signatures import SigningKeys
from stillmotion.store import outbox
from stillmotion.store.open import Store
from stillmotion.store.outbox import Delivery
from stillmotion.types import Ending, Failure, Outcome
from stillmotion.wakeup import Wakeup
from stillmotion.webhooks import Sender, Spelling, pause_s, read_retry_after
from tests.manual_clock import ManualClock
from tests.receiver import Call, Receiver, status, verify
from tests.store.asks import NOW, ask, claimed, finish, submit

pytestmark = pytest.mark.anyio

DEADLINE_S = 20.0
FAILED = Ending(
    outcome=Outcome.ERROR, failure=Failure(status=422, kind="value_error", message="no", field="prompt")
)
SPELLING = Spelling(body=wire.webhook, headers=wire.webhook_headers)


class Post:
    """A sender with all it needs, and short ways to feed and watch it."""

    def __init__(self, store: Store, clock: ManualClock, data_dir: Path) -> None:
        self.store = store
        self.clock = clock
        self.wakeup = Wakeup()
        self.keys = SigningKeys(data_dir, clock.now())
        self.spelling = SPELLING

    @asynccontextmanager
    async def sending(self, **changes: Any) -> AsyncIterator[None]:
        given: dict[str, Any] = {"webhook_allow": ["127.0.0.1"], **changes}
        sender = Sender(
            settings=Settings(**given),
            store=self.store,
            keys=self.keys,
            clock=self.clock,
            wakeup=self.wakeup,
            spelling=self.spelling,
        )
        task = asyncio.create_task(sender.run())
        try:
            yield
        finally:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    def end(self, url: str) -> str:
        """Finish a request with a webhook."""
        submit(self.store, ask(webhook=url), self.clock.now())
        held = claimed(self.store)
        assert finish(self.store, held, FAILED)
        self.wakeup.notify("webhook")
        return held.id

    def row(self, request_id: str) -> Delivery:
        rows = self.store.read_now(lambda conn: outbox.list_deliveries(conn, 100, undelivered=False))
        return next(row for row in rows if row.request_id == request_id)

    async def until(self, request_id: str, holds: Callable[[Delivery], object]) -> Delivery:
        """Wait for a row to be as told; every mark is followed by a notification."""
        async with asyncio.timeout(DEADLINE_S):
            while not holds(row := self.row(request_id)):
                await self.wakeup.wait("webhook", 0.05)
        return row

    async def failed(self, request_id: str, tries: int) -> Delivery:
        return await self.until(
            request_id, lambda row: row.tries == tries and row.last_error and row.lease_until is None
        )

    def go_to(self, moment: float) -> None:
        self.clock.advance(moment - self.clock.now() + 0.001)
        self.wakeup.notify("webhook")

    def verifies(self, call: Call) -> bool:
        return verify(call.headers, call.body, wire.jwks(self.keys.published()), self.clock.now())


@pytest.fixture
def post(sqlite_store: Store, clock: ManualClock, tmp_path: Path) -> Post:
    # `asks.finish` ends requests five seconds after NOW.
    clock.advance(NOW + 6 - clock.now())
    return Post(sqlite_store, clock, tmp_path)


async def arrived(receiver: Receiver) -> Call:
    return await asyncio.to_thread(receiver.next)


async def test_a_delivery_is_signed_whole_and_marked_once(post: Post) -> None:
    with Receiver() as receiver:
        async with post.sending():
            request_id = post.end(f"{receiver.url}?token=a%20b")
            call = await arrived(receiver)
            await post.until(request_id, lambda row: row.delivered)
        assert receiver.got.empty()
    assert call.path == "/hook?token=a%20b"
    assert call.headers["Content-Type"] == "application/json"
    assert call.headers["Host"] == receiver.url.split("/")[2]
    assert post.verifies(call)
    assert call.headers["X-Fal-Webhook-User-Id"] == "nobody"
    told = json.loads(call.body)
    assert (told["request_id"], told["status"]) == (request_id, "ERROR")


async def test_f18_a_clock_set_back_puts_off_no_delivery(post: Post) -> None:
    with Receiver(status(500), status(204)) as receiver:
        async with post.sending(webhook_retry_base_s=15):
            request_id = post.end(receiver.url)
            await arrived(receiver)
            row = await post.failed(request_id, 1)
            post.clock.jump(-3600)
            post.clock.advance(row.due - post.clock.steady())
            post.wakeup.notify("webhook")
            await arrived(receiver)
            await post.until(request_id, lambda row: row.delivered)


async def test_w01_three_500s_then_200_are_four_tries_of_one_body(post: Post) -> None:
    with Receiver(*[status(500)] * 3, status(204)) as receiver:
        async with post.sending(webhook_retry_base_s=15):
            request_id = post.end(receiver.url)
            calls: list[Call] = []
            for tries in (1, 2, 3):
                calls.append(await arrived(receiver))
                assert post.verifies(calls[-1])
                row = await post.failed(request_id, tries)
                assert row.last_error == "answered 500"
                pause = row.due - post.clock.now()
                assert 0.8 <= pause / (15 * 2 ** (tries - 1)) <= 1.2
                post.go_to(row.due)
            calls.append(await arrived(receiver))
            assert post.verifies(calls[-1])
            await post.until(request_id, lambda row: row.delivered)
    assert len({call.body for call in calls}) == 1
    assert {call.headers["X-Fal-Webhook-Request-Id"] for call in calls} == {request_id}
    stamps = [call.timestamp for call in calls]
    assert stamps == sorted(set(stamps)), "each try has its own time"
    assert not verify(calls[0].headers, calls[0].body, wire.jwks(post.keys.published()), stamps[-1] + 301)


async def test_w02_a_receiver_that_hangs_is_cut_and_delays_nobody(post: Post) -> None:
    hanging = Receiver()
    hanging.answers = [hanging.hang]
    with hanging, Receiver() as quick:
        async with post.sending(webhook_timeout_s=2):
            slow = [post.end(hanging.url) for _ in range(6)]
            for _ in range(4):
                await arrived(hanging)
            began = time.monotonic()
            post.end(quick.url)
            await arrived(quick)
            assert time.monotonic() - began < 1.5
            assert hanging.got.empty(), "no more than four at once"
            row = await post.failed(slow[0], 1)
            assert row.last_error == "no answer within 2 s"
            await arrived(hanging)


def drip(handler: BaseHTTPRequestHandler, first: bytes) -> None:
    handler.wfile.write(first)
    try:
        while True:
            handler.wfile.write(b"x")
            handler.connection.settimeout(0.02)
            try:
                # The sender says nothing more; an end of file means that it left.
                if handler.connection.recv(1) == b"":
                    return
            except TimeoutError:
                continue
    except OSError:
        return


async def test_w02_dripped_headers_are_cut_at_the_whole_limit(post: Post) -> None:
    with Receiver(lambda handler: drip(handler, b"HTTP/1.1 200 OK\r\nX-Slow: ")) as receiver:
        async with post.sending(webhook_timeout_s=0.5):
            request_id = post.end(receiver.url)
            assert (await post.failed(request_id, 1)).last_error == "no answer within 0.5 s"


async def test_w02_the_status_line_acknowledges_however_slow_the_rest_is(post: Post) -> None:
    with Receiver(lambda handler: drip(handler, b"HTTP/1.1 200 OK\r\n\r\n")) as receiver:
        async with post.sending(webhook_timeout_s=0.5):
            request_id = post.end(receiver.url)
            await post.until(request_id, lambda row: row.delivered)


async def test_an_endless_answer_is_not_read_to_its_end(post: Post) -> None:
    left = asyncio.Event()
    loop = asyncio.get_running_loop()

    def flood(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                handler.wfile.write(b"x" * 65536)
        except OSError:
            loop.call_soon_threadsafe(left.set)

    with Receiver(flood) as receiver:
        async with post.sending(webhook_timeout_s=600):
            request_id = post.end(receiver.url)
            await post.until(request_id, lambda row: row.delivered)
            await asyncio.wait_for(left.wait(), DEADLINE_S)


@pytest.mark.parametrize("code", [301, 302, 307, 308])
async def test_w03_a_redirect_is_a_failure_and_not_followed(post: Post, code: int) -> None:
    with Receiver() as trap, Receiver(status(code, Location=trap.url)) as receiver:
        async with post.sending():
            request_id = post.end(receiver.url)
            row = await post.failed(request_id, 1)
        assert (row.last_error, row.parked) == (f"answered {code}", None)
        assert trap.got.empty()


async def test_w04_410_ends_the_tries(post: Post) -> None:
    with Receiver(status(410)) as receiver:
        async with post.sending():
            row = await post.until(post.end(receiver.url), lambda row: row.parked)
    assert (row.tries, row.last_error) == (1, "answered 410")


@pytest.mark.parametrize(("asked", "waits"), [("3600", 3600), ("999999", 3600), ("120", 120), ("1", 15)])
async def test_w04_retry_after_is_honoured_within_an_hour(post: Post, asked: str, waits: float) -> None:
    with Receiver(status(429, Retry_After=asked)) as receiver:
        async with post.sending():
            row = await post.failed(post.end(receiver.url), 1)
    assert row.due - post.clock.now() == pytest.approx(waits, rel=0.2)


async def test_w05_a_private_receiver_gets_no_packet_and_an_allowed_one_does(post: Post) -> None:
    with Receiver() as receiver:
        url = receiver.url.replace("127.0.0.1", "localhost")
        async with post.sending(webhook_allow=[]):
            request_id = post.end(url)
            row = await post.failed(request_id, 1)
            assert row.last_error == "address not allowed"
            assert receiver.got.empty()
        async with post.sending(webhook_allow=["localhost"]):
            post.go_to(row.due)
            assert post.verifies(await arrived(receiver))


async def test_w05_a_name_that_turns_private_after_the_submit_is_refused(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def rebound(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    with Receiver() as receiver:
        port = receiver.url.split(":")[2]
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", rebound)
        async with post.sending(webhook_allow=[]):
            row = await post.failed(post.end(f"http://hook.example:{port}"), 1)
        assert row.last_error == "address not allowed"
        assert receiver.got.empty()


async def test_unknown_hosts_dead_ports_and_nonsense_are_told_apart(post: Post) -> None:
    with Receiver() as gone:
        dead = gone.url
    rubbish = Receiver(lambda handler: handler.wfile.write(b"220 mail ready\r\n"))
    with rubbish, Receiver(lambda handler: None) as mute:
        async with post.sending(webhook_allow=["127.0.0.1", "hook.invalid"]):
            for url, error in (
                ("http://hook.invalid/x", "host name not found"),
                (dead, "no connection"),
                (rubbish.url, "connection broke or answer was no HTTP"),
                (mute.url, "connection broke or answer was no HTTP"),
            ):
                assert (await post.failed(post.end(url), 1)).last_error == error


async def test_after_its_last_try_a_delivery_is_parked_and_redelivery_sends_the_same_bytes(
    post: Post,
) -> None:
    with Receiver(status(500), status(500), status(200)) as receiver:
        async with post.sending(webhook_tries=2):
            request_id = post.end(receiver.url)
            first = await arrived(receiver)
            post.go_to((await post.failed(request_id, 1)).due)
            await arrived(receiver)
            row = await post.until(request_id, lambda row: row.parked)
            assert row.tries == 2
            now = post.clock.now()
            assert post.store.write_now(lambda conn: outbox.redeliver(conn, request_id, now))
            post.wakeup.notify("webhook")
            again = await arrived(receiver)
            await post.until(request_id, lambda row: row.delivered)
    assert again.body == first.body
    assert post.verifies(again)


async def test_f05_what_was_being_sent_when_the_server_died_is_sent_again(post: Post) -> None:
    hanging = Receiver()
    hanging.answers = [hanging.hang, status(200)]
    with hanging:
        async with post.sending():
            request_id = post.end(hanging.url)
            first = await arrived(hanging)
        assert post.row(request_id).delivered is None
        async with post.sending():
            # Its lease still holds; a server that starts alone frees it.
            assert post.store.write_now(outbox.free_claimed) == 1
            post.wakeup.notify("webhook")
            again = await arrived(hanging)
            await post.until(request_id, lambda row: row.delivered)
    assert again.body == first.body


async def test_w07_each_try_verifies_with_the_keys_published_at_its_time(post: Post) -> None:
    with Receiver(status(500)) as receiver:
        async with post.sending():
            request_id = post.end(receiver.url)
            assert post.verifies(first := await arrived(receiver))
            row = await post.failed(request_id, 1)
            post.keys.rotate(post.clock.now(), at_once=True)
            post.go_to(row.due)
            assert post.verifies(await arrived(receiver))
            assert not post.verifies(first), "the dropped key counts no more"


async def test_a_fault_of_ours_costs_a_try_and_harms_no_other(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    with Receiver() as receiver:
        bad = post.end(receiver.url)

        def body(request: Any, film: Any) -> bytes:
            if request.id == bad:
                raise ZeroDivisionError
            return wire.webhook(request, film)

        post.spelling = Spelling(body=body, headers=wire.webhook_headers)
        async with post.sending():
            row = await post.failed(bad, 1)
            good = post.end(receiver.url)
            await post.until(good, lambda row: row.delivered)
    assert row.last_error == "fault of this server, see its log"
    assert f"{bad} webhook broke" in caplog.text


async def test_no_log_line_holds_the_receivers_secrets(post: Post, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with Receiver(status(500), status(200)) as receiver:
        async with post.sending():
            request_id = post.end(f"{receiver.url}/s3cret?token=s3cret")
            post.go_to((await post.failed(request_id, 1)).due)
            await post.until(request_id, lambda row: row.delivered)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("stillmotion")]
    assert any("webhook failed" in line for line in ours) and any("delivered" in line for line in ours)
    assert not any("s3cret" in line for line in ours)


async def test_a_delivery_that_cannot_be_marked_is_left_to_its_lease(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    def close_first(handler: BaseHTTPRequestHandler) -> None:
        post.store.close_now()
        status(200)(handler)

    with Receiver(close_first) as receiver:
        async with post.sending():
            request_id = post.end(receiver.url)
            async with asyncio.timeout(DEADLINE_S):
                while f"{request_id} webhook not marked" not in caplog.text:
                    await post.wakeup.wait("webhook", 0.05)
                while "outbox not reachable" not in caplog.text:
                    post.wakeup.notify("webhook")
                    await asyncio.sleep(0)


def test_ten_tries_take_about_two_hours() -> None:
    random.seed(1)
    pauses = [pause_s(tries, 15) for tries in range(1, 10)]
    assert 1.6 * 3600 < sum(pauses) < 2.6 * 3600
    assert pause_s(1000, 15) <= 1.2 * 6 * 3600
    first = {pause_s(1, 15) for _ in range(100)}
    assert len(first) == 100 and min(first) >= 12 and max(first) <= 18


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        ("", 0), ("0", 0), (" 30 ", 30), ("7200", 3600), ("9" * 400, 3600), ("-5", 0), ("soon", 0),
        ("Tue, 14 Nov 2023 22:15:20 GMT", 120), ("Tue, 14 Nov 2023 22:15:20 -0000", 120),
        ("Tue, 14 Nov 2023 21:00:00 GMT", 0), ("Tue, 14 Nov 2043 22:15:20 GMT", 3600),
        ("Tue, 14 Nov 2023 22:15:20 +99999999999999", 0), ("Tue, 99 Nov 2023 22:15:20 GMT", 0), ("\u0663", 0),
    ],
)  # fmt: skip
def test_retry_after_takes_seconds_or_a_date_and_is_bounded(value: str, wait_s: float) -> None:
    assert read_retry_after(value, NOW) == wait_s
