"""The operator's routes, and the scope they ask for."""

from pathlib import Path

import pytest

from stillmotion import keys
from stillmotion.store import outbox
from stillmotion.store.open import Store
from tests.http.house import ROCKET, TEXT, House
from tests.manual_clock import ManualClock

pytestmark = pytest.mark.anyio


def admin_key(house: House) -> str:
    return house.store.write_now(lambda conn: keys.create_key(conn, "ops", house.clock.now(), admin=True))


async def test_k01_a_key_of_scope_api_is_a_403_and_no_key_a_401(house: House) -> None:
    for method, path in (("GET", "/admin/webhooks"), ("POST", "/admin/webhooks/x/redeliver")):
        async with house.client() as client:
            refused = await client.request(method, path)
        assert (refused.status_code, refused.json()["error_type"]) == (403, "forbidden")
        assert "--scope admin" in refused.json()["detail"]
        async with house.client(None) as client:
            assert (await client.request(method, path)).status_code == 401


async def test_an_admin_key_does_what_a_client_does_and_lists_and_redelivers_webhooks(house: House) -> None:
    house.rebuild(webhook_allow=["127.0.0.1"])
    request_id = (await house.submit(query="?fal_webhook=http://127.0.0.1:9/hook"))["request_id"]
    claimed = house.claim()
    assert claimed is not None
    await house.finish(claimed)
    async with house.client(admin_key(house)) as client:
        assert (await client.post(f"/queue/{TEXT}", json=ROCKET)).status_code == 200
        (told,) = (await client.get("/admin/webhooks")).json()["webhooks"]
        assert (told["request"], told["tries"], told["delivered"]) == (request_id, 0, None)
        assert "body" not in told
        now = house.clock.now()
        (due,) = house.store.write_now(
            lambda conn: outbox.claim_due(
                conn, now=now, steady=now, lease_s=9, most=1, per_host=1, under_way={}
            )
        )
        assert house.store.write_now(lambda conn: outbox.delivered(conn, due, now))
        assert (await client.get("/admin/webhooks")).json() == {"webhooks": []}
        assert len((await client.get("/admin/webhooks?all=1")).json()["webhooks"]) == 1
        again = await client.post(f"/admin/webhooks/{request_id}/redeliver")
        assert (again.status_code, again.json()) == (202, {"status": "DUE"})
        assert len((await client.get("/admin/webhooks")).json()["webhooks"]) == 1
        unknown = await client.post("/admin/webhooks/nobody/redeliver")
        assert (unknown.status_code, unknown.json()) == (404, {"status": "NOT_FOUND"})


async def test_what_is_no_id_is_an_unknown_one_on_both_databases(
    store: Store, clock: ManualClock, tmp_path: Path
) -> None:
    house = House(store, clock, tmp_path)
    async with house.client(admin_key(house)) as client:
        unknown = await client.post("/admin/webhooks/a%00b/redeliver")
    assert (unknown.status_code, unknown.json()) == (404, {"status": "NOT_FOUND"})
