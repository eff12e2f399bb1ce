"""What every store test needs: requests to submit, and the short calls around them."""

from typing import Any

from sqlalchemy import Connection

from stillmotion import ids
from stillmotion.keys import create_key
from stillmotion.store import queue
from stillmotion.store.open import Store
from stillmotion.types import Bases, Ending, NewRequest, Outcome, Request

NOW = 1_700_000_000.0
LEASE_S = 20.0

OK = Ending(
    outcome=Outcome.OK,
    result={"file": "f1", "seed": 7},
    fingerprint="pocket/cpu",
    timings={"denoise": 0.5},
)


def ask(**changes: Any) -> NewRequest:
    values: dict[str, Any] = {
        "id": ids.request_id(NOW),
        "profile": "pocket",
        "endpoint": "fal-ai/fast-svd-lcm",
        "key_id": "nobody",
        "input": {"prompt": "a rocket", "seed": 7},
        "picture": None,
        "bases": Bases(queue="http://localhost/queue", files="http://localhost/cdn"),
    }
    return NewRequest(**(values | changes))


def claim_on(conn: Connection, now: float = NOW, profile: str = "pocket") -> Request | None:
    return queue.claim_next(conn, profile=profile, owner="w1", now=now, steady=now, lease_s=LEASE_S)


def submit(store: Store, new: NewRequest, now: float = NOW) -> Request:
    return store.write_now(lambda conn: queue.submit(conn, new, now))


def claimed(store: Store, now: float = NOW) -> Request:
    found = store.write_now(lambda conn: claim_on(conn, now))
    assert found is not None, "nothing was ready"
    return found


def finish(store: Store, held: Request, ending: Ending = OK) -> bool:
    return store.write_now(lambda conn: queue.finish(conn, held.id, held.attempt, ending, [], NOW + 5))


def read(store: Store, request_id: str) -> Request:
    found = store.read_now(lambda conn: queue.get(conn, request_id))
    assert found is not None, f"{request_id} is not in the store"
    return found


def limited_key(store: Store, concurrency: int) -> str:
    key = store.write_now(lambda conn: create_key(conn, "limited", NOW, concurrency=concurrency))
    return key.partition(":")[0]
