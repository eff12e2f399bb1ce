"""Keys at the door: which are taken, and what becomes of a dead key's work."""

from typing import Any

import pytest

from stillmotion import keys
from stillmotion.types import State
from tests.http.house import TURBO, House

pytestmark = pytest.mark.anyio

STATUS = f"/queue/{TURBO}/requests/01890000-0000-7000-8000-000000000000/status"


def new_key(house: House, **options: Any) -> str:
    return house.store.write_now(lambda conn: keys.create_key(conn, "one", house.clock.now(), **options))


def revoke(house: House, key: str) -> None:
    key_id, now = key.partition(":")[0], house.clock.now()
    assert house.store.write_now(lambda conn: keys.revoke_key(conn, key_id, now))


async def test_k01_every_bad_key_is_a_401_in_fals_shape_and_one_answer_for_all_well_formed_ones(
    house: House,
) -> None:
    good, revoked, expired = new_key(house), new_key(house), new_key(house, expires=house.clock.now())
    revoke(house, revoked)
    key_id, _, secret = good.partition(":")
    headers = {
        "no key": None,
        "wrong scheme": f"Basic {good}",
        "id alone": f"Key {key_id}",
        "unknown id": f"Key 0123:{secret}",
        "wrong secret": f"Key {key_id}:{revoked.partition(':')[2]}",
        "mistyped secret": f"Key {good[:-1]}",
        "revoked": f"Key {revoked}",
        "expired": f"Key {expired}",
    }
    bodies: dict[str, bytes] = {}
    async with house.client(None) as client:
        for name, header in headers.items():
            answer = await client.get(STATUS, headers={} if header is None else {"Authorization": header})
            assert answer.status_code == 401, name
            assert answer.json()["error_type"] == answer.headers["x-fal-error-type"] == "unauthorized"
            bodies[name] = answer.content
        assert (await client.get(STATUS, headers={"Authorization": f"Key {good}"})).status_code == 404
    # What is wrong with a key that might have been one, nobody is told.
    tellable = ("no key", "wrong scheme", "id alone")
    assert len({body for name, body in bodies.items() if name not in tellable}) == 1


async def test_k03_a_revoked_keys_work_goes_on_and_its_next_call_is_a_401_within_five_seconds(
    house: House,
) -> None:
    running = (await house.submit())["request_id"]
    waiting = (await house.submit())["request_id"]
    claimed = house.claim()
    assert claimed is not None and claimed.id == running
    async with house.client() as client:
        assert (await client.get(STATUS)).status_code == 404
        revoke(house, house.key)
        house.clock.advance(5)
        assert (await client.get(STATUS)).status_code == 401
    await house.finish(claimed)
    claimed = house.claim()
    assert claimed is not None and claimed.id == waiting
    await house.finish(claimed)
    assert house.row(waiting).state is State.DONE


async def test_a_key_dies_at_its_expiry_and_a_rotated_ones_old_secret_at_its_overlaps_end(
    house: House,
) -> None:
    key = new_key(house, expires=house.clock.now() + 60)
    key_id, now = key.partition(":")[0], house.clock.now()
    fresh = house.store.write_now(lambda conn: keys.rotate_key(conn, key_id, now, overlap_s=30))

    async def codes() -> list[int]:
        found: list[int] = []
        for one in (key, fresh):
            async with house.client(one) as client:
                found.append((await client.get(STATUS)).status_code)
        return found

    assert await codes() == [404, 404]
    house.clock.advance(30)
    assert await codes() == [401, 404]
    house.clock.advance(30)
    assert await codes() == [401, 401]
