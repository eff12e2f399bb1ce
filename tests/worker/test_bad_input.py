from pathlib import Path
from typing import Any

import pytest

from stillmotion.store.open import Store
from stillmotion.types import Outcome
from tests.worker.house import open_house, png

pytestmark = pytest.mark.anyio


async def failure_of(house_store: Store, folder: Path, picture: str | bytes) -> tuple[int, str, str | None]:
    async with open_house(house_store, folder) as house:
        named = await house.upload(picture) if isinstance(picture, bytes) else picture
        row = await house.ended(await house.submit(picture=named))
        assert row.outcome is Outcome.ERROR
        assert row.failure is not None
        assert (await house.ended(await house.submit())).outcome is Outcome.OK
        return row.failure.status, row.failure.kind, row.failure.field


async def test_a_damaged_picture_fails_naming_image_url(sqlite_store: Store, tmp_path: Path) -> None:
    cut = png((1, 2, 3))[:60]
    assert await failure_of(sqlite_store, tmp_path, cut) == (422, "image_load_error", "image_url")


async def test_a_file_that_is_gone_fails_naming_image_url(sqlite_store: Store, tmp_path: Path) -> None:
    gone = "file:00000000000000000000000000000000"
    assert await failure_of(sqlite_store, tmp_path, gone) == (422, "file_download_error", "image_url")


@pytest.mark.parametrize("change", [{"expires": 1.0}, {"complete": False}])
async def test_a_file_that_expired_while_its_request_waited_or_never_came_is_not_read(
    sqlite_store: Store, tmp_path: Path, change: dict[str, Any]
) -> None:
    async with open_house(sqlite_store, tmp_path) as house:
        row = await house.ended(await house.submit(picture=await house.upload(png((1, 2, 3)), **change)))
    assert row.failure is not None
    assert (row.failure.kind, row.failure.field) == ("file_download_error", "image_url")


@pytest.mark.parametrize(
    ("limit", "kind"),
    [({"picture_bytes": 1024}, "file_too_large"), ({"picture_pixels": 64}, "image_too_large")],
)
async def test_an_upload_past_the_limits_of_a_picture_is_refused(
    sqlite_store: Store, tmp_path: Path, limit: dict[str, Any], kind: str
) -> None:
    async with open_house(sqlite_store, tmp_path, **limit) as house:
        picture = await house.upload(png((1, 2, 3)) + bytes(1024))
        row = await house.ended(await house.submit(picture=picture))
    assert row.failure is not None
    assert (row.failure.kind, row.failure.field) == (kind, "image_url")


async def test_a_private_address_is_refused_naming_image_url(sqlite_store: Store, tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/picture.png"
    assert await failure_of(sqlite_store, tmp_path, url) == (422, "file_download_error", "image_url")


async def test_an_input_the_model_refuses_keeps_its_field(sqlite_store: Store, tmp_path: Path) -> None:
    async with open_house(sqlite_store, tmp_path) as house:
        row = await house.ended(await house.submit("refuse_at=1"))
        assert row.failure is not None
        assert (row.failure.status, row.failure.field) == (422, "prompt")
