import hashlib

import pytest

from stillmotion.keys import KeyProblem, check_key, create_key, list_keys, revoke_key, rotate_key
from stillmotion.store.open import Store
from stillmotion.store.tables import api_key
from stillmotion.types import Caller

NOW = 1_700_000_000.0


def check(store: Store, credential: str, now: float = NOW) -> Caller | KeyProblem:
    return store.read_now(lambda conn: check_key(conn, credential, now))


def test_key_is_accepted_as_its_caller(sqlite_store: Store) -> None:
    key = sqlite_store.write_now(lambda conn: create_key(conn, "ops", NOW, admin=True))
    assert check(sqlite_store, key) == Caller(key_id=key.partition(":")[0], name="ops", admin=True)


def test_only_the_hash_of_the_secret_is_kept(sqlite_store: Store) -> None:
    key = sqlite_store.write_now(lambda conn: create_key(conn, "a", NOW, concurrency=2, expires=NOW + 9))
    key_id, _, secret = key.partition(":")
    row = sqlite_store.read_now(lambda conn: conn.execute(api_key.select()).one())
    assert row.digest == hashlib.sha256(secret.encode()).hexdigest()
    assert secret not in repr(row)
    (shown,) = sqlite_store.read_now(list_keys)
    assert (shown.id, shown.name, shown.concurrency, shown.expires) == (key_id, "a", 2, NOW + 9)


def test_secrets_are_long_and_differ(sqlite_store: Store) -> None:
    keys = {sqlite_store.write_now(lambda conn: create_key(conn, "a", NOW)) for _ in range(20)}
    assert len(keys) == 20
    assert {len(key.partition(":")[2]) for key in keys} == {len("stillm_") + 43 + 8}


def test_wrong_secret_unknown_id_revoked_and_expired_are_one_answer(sqlite_store: Store) -> None:
    def create(expires: float | None = None) -> str:
        return sqlite_store.write_now(lambda conn: create_key(conn, "a", NOW, expires=expires))

    mine, other, expired, revoked = create(), create(), create(expires=NOW), create()
    mine_id, other_secret = mine.partition(":")[0], other.partition(":")[2]
    revoked_id = revoked.partition(":")[0]
    assert sqlite_store.write_now(lambda conn: revoke_key(conn, revoked_id, NOW))
    assert not sqlite_store.write_now(lambda conn: revoke_key(conn, revoked_id, NOW))
    assert not sqlite_store.write_now(lambda conn: revoke_key(conn, "0000", NOW))
    for credential in (f"{mine_id}:{other_secret}", f"0000:{other_secret}", expired, revoked):
        assert check(sqlite_store, credential) is KeyProblem.UNKNOWN
    assert isinstance(check(sqlite_store, mine), Caller)


@pytest.mark.parametrize(
    "damage",
    [
        lambda key: "",
        lambda key: key.partition(":")[0],
        lambda key: key.partition(":")[2],
        lambda key: ":" + key.partition(":")[2],
        lambda key: key[:-1],
        lambda key: key + "0",
        lambda key: key[:30] + ("A" if key[30] != "A" else "B") + key[31:],
        lambda key: key + "\n",
        lambda key: "é\x00" + key,
        lambda key: key.replace("stillm_", "sk_"),
    ],
)
def test_mistyped_key_is_told_from_a_wrong_one(sqlite_store: Store, damage) -> None:  # type: ignore[no-untyped-def]
    key = sqlite_store.write_now(lambda conn: create_key(conn, "a", NOW))
    assert check(sqlite_store, damage(key)) is KeyProblem.MALFORMED


def test_rotated_key_keeps_its_id_and_both_secrets_work_for_a_while(sqlite_store: Store) -> None:
    old = sqlite_store.write_now(lambda conn: create_key(conn, "a", NOW, admin=True))
    key_id = old.partition(":")[0]

    def rotate(now: float, overlap_s: float) -> str:
        fresh = sqlite_store.write_now(lambda conn: rotate_key(conn, key_id, now, overlap_s=overlap_s))
        assert fresh is not None
        return fresh

    second = rotate(NOW, 60)
    assert second.partition(":")[0] == key_id and second != old
    assert (
        check(sqlite_store, old, NOW + 59)
        == check(sqlite_store, second)
        == Caller(key_id=key_id, name="a", admin=True)
    )
    assert check(sqlite_store, old, NOW + 60) is KeyProblem.UNKNOWN
    third = rotate(NOW + 1, 0)
    for dead in (old, second):
        assert check(sqlite_store, dead, NOW + 1) is KeyProblem.UNKNOWN
    assert isinstance(check(sqlite_store, third, NOW + 9999), Caller)
    assert sqlite_store.write_now(lambda conn: revoke_key(conn, key_id, NOW))
    assert check(sqlite_store, third) is KeyProblem.UNKNOWN
    assert sqlite_store.write_now(lambda conn: rotate_key(conn, key_id, NOW, overlap_s=0)) is None
