"""The outbox: leased, fenced, frozen; nothing due is lost and nothing at rest is sent."""

from collections.abc import Mapping
from urllib.parse import urlsplit

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection

from stillmotion.net.guard import AddressRefused, parse_url
from stillmotion.store import outbox
from stillmotion.store.open import Store
from stillmotion.store.outbox import Delivery
from stillmotion.store.retention import drop_old_requests
from tests.store.asks import LEASE_S, NOW, ask, claimed, finish, submit
from tests.store.test_interleavings import interleave

#: Endings of `asks.finish` are written then.
ENDED = NOW + 5


def ended(store: Store, *urls: str) -> list[str]:
    """Finish one request per webhook URL; return their ids."""
    made: list[str] = []
    for url in urls:
        submit(store, ask(webhook=url))
        held = claimed(store)
        assert finish(store, held)
        made.append(held.id)
    return made


def due(
    store: Store,
    now: float = ENDED,
    *,
    most: int = 10,
    per_host: int = 4,
    under_way: Mapping[str, int] | None = None,
) -> list[Delivery]:
    return store.write_now(
        lambda conn: outbox.claim_due(
            conn,
            now=now,
            steady=now,
            lease_s=LEASE_S,
            most=most,
            per_host=per_host,
            under_way=under_way or {},
        )
    )


def one(store: Store) -> Delivery:
    (row,) = store.read_now(lambda conn: outbox.list_deliveries(conn, 10, undelivered=False))
    return row


def fail(store: Store, delivery: Delivery, due: float | None) -> bool:
    return store.write_now(lambda conn: outbox.failed(conn, delivery, "answered 500", ENDED, due))


def succeed(store: Store, delivery: Delivery) -> bool:
    return store.write_now(lambda conn: outbox.delivered(conn, delivery, ENDED))


def test_an_ending_is_due_at_once_and_leased_to_one_sender(store: Store) -> None:
    first, second = ended(store, "http://hook/a", "http://hook/b")
    claims = due(store)
    assert [claim.request_id for claim in claims] == [first, second]
    assert [(claim.tries, claim.body, claim.host) for claim in claims] == [(1, None, "hook")] * 2
    assert due(store) == []


def test_f05_a_delivery_whose_sender_died_is_claimed_again_when_its_lease_ends(store: Store) -> None:
    ended(store, "http://hook/a")
    (lost,) = due(store)
    assert due(store, ENDED + LEASE_S - 1) == []
    (again,) = due(store, ENDED + LEASE_S)
    assert (again.request_id, again.tries) == (lost.request_id, 2)
    assert not succeed(store, lost), "the older try is fenced"
    assert not fail(store, lost, ENDED)
    assert succeed(store, again)
    assert one(store).delivered == ENDED


def test_a_delivered_one_stays_so_whatever_a_late_mark_says(store: Store) -> None:
    ended(store, "http://hook/a")
    (claim,) = due(store)
    assert succeed(store, claim)
    assert not fail(store, claim, ENDED)
    assert one(store).delivered == ENDED


def test_a_starting_server_frees_what_the_last_one_was_sending(store: Store) -> None:
    ended(store, "http://hook/a", "http://hook/b")
    sent, _ = due(store)
    assert succeed(store, sent)
    assert store.write_now(outbox.free_claimed) == 1
    assert len(due(store)) == 1


def test_failed_delivery_waits_until_it_is_due_and_parked_one_for_good(store: Store) -> None:
    ended(store, "http://hook/a")
    (first,) = due(store)
    assert fail(store, first, ENDED + 15)
    assert due(store, ENDED + 14) == []
    (second,) = due(store, ENDED + 15)
    assert (second.tries, second.last_error) == (2, "answered 500")
    assert fail(store, second, None)
    assert one(store).parked == ENDED
    assert due(store, ENDED + 10**9) == []


def test_a_full_host_holds_up_no_other(store: Store) -> None:
    slow = ended(store, *["http://slow/x"] * 3, *["http://SLOW/x"] * 2)
    quick = ended(store, "http://QUICK:3000/x", "http://quick/x")
    assert [claim.request_id for claim in due(store, per_host=4)] == [*slow[:4], *quick]
    assert due(store, per_host=4, under_way={"slow": 4}) == []
    assert [claim.request_id for claim in due(store, per_host=4, under_way={"slow": 3})] == slow[4:]


def test_no_more_than_asked_is_claimed(store: Store) -> None:
    ended(store, *(f"http://hook{n}/x" for n in range(5)))
    assert len(due(store, most=0)) == 0
    assert len(due(store, most=3)) == 3
    assert len(due(store, most=3)) == 2


def test_the_first_body_counts(store: Store) -> None:
    (request_id,) = ended(store, "http://hook/a")
    for body in (b"first\x00\xff", b"second"):
        kept = store.write_now(lambda conn, body=body: outbox.freeze(conn, request_id, body))
        assert kept == b"first\x00\xff"
    assert due(store)[0].body == b"first\x00\xff"


def test_redelivery_starts_over_with_the_same_body(store: Store) -> None:
    (request_id,) = ended(store, "http://hook/a")
    (claim,) = due(store)
    store.write_now(lambda conn: outbox.freeze(conn, request_id, b"body"))

    def again() -> bool:
        return store.write_now(lambda conn: outbox.redeliver(conn, request_id, ENDED + 9))

    assert again(), "also while one is under way"
    assert not succeed(store, claim)
    before = claim
    (claim,) = due(store, ENDED + 9)
    assert (claim.tries, claim.body) == (1, b"body")
    assert not succeed(store, before), "what was asked for again is not what was under way"
    assert not fail(store, before, None)
    assert fail(store, claim, None)
    assert again()
    (claim,) = due(store, ENDED + 9)
    assert succeed(store, claim)
    assert again()
    assert len(due(store, ENDED + 9)) == 1
    assert not store.write_now(lambda conn: outbox.redeliver(conn, "nobody", ENDED))


def test_the_list_shows_newest_first_and_delivered_ones_on_demand(store: Store) -> None:
    ids = ended(store, "http://hook/a", "http://hook/b", "http://hook/c")
    assert succeed(store, due(store, most=1)[0])

    def listed(limit: int, *, undelivered: bool) -> list[str]:
        rows = store.read_now(lambda conn: outbox.list_deliveries(conn, limit, undelivered=undelivered))
        return [row.request_id for row in rows]

    newest_first = sorted(ids, reverse=True)
    assert listed(9, undelivered=False) == newest_first
    assert listed(9, undelivered=True) == [request_id for request_id in newest_first if request_id != ids[0]]
    assert len(listed(1, undelivered=False)) == 1


def test_a_request_is_forgotten_when_its_webhook_is_sent_and_takes_the_delivery_along(store: Store) -> None:
    ended(store, "http://hook/a")
    (claim,) = due(store)
    assert store.write_now(lambda conn: drop_old_requests(conn, ENDED + 1, 10)) == 0
    assert succeed(store, claim)
    assert store.write_now(lambda conn: drop_old_requests(conn, ENDED + 1, 10)) == 1
    assert store.read_now(lambda conn: outbox.list_deliveries(conn, 10, undelivered=False)) == []


def test_two_senders_at_once_never_claim_the_same(store_url: str, store: Store) -> None:
    ended(store, "http://hook/a", "http://hook/b")

    def claim(conn: Connection) -> list[str]:
        rows = outbox.claim_due(
            conn, now=ENDED, steady=ENDED, lease_s=LEASE_S, most=1, per_host=4, under_way={}
        )
        return [row.request_id for row in rows]

    first, second = interleave(store_url, claim, claim)
    assert len({*first, *second}) == 2


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.text(max_size=20))
def test_no_url_the_guard_reads_can_break_an_ending(host: str, rest: str) -> None:
    try:
        target = parse_url(f"http://{host}/{rest}")
    except AddressRefused:
        return
    kept = str(target.url)
    assert kept.isascii()
    assert urlsplit(kept).netloc
    assert parse_url(kept).host == target.host
