from pathlib import Path

import pytest

from stillmotion.store.open import Store
from stillmotion.types import Access, Acl, Lifecycle
from tests.worker.house import open_house

pytestmark = pytest.mark.anyio


async def test_a_film_lives_as_long_as_its_request_wished_and_for_whom(store: Store, tmp_path: Path) -> None:
    acl = Acl(default=Access.HIDE, rules={"friend": Access.ALLOW})
    async with open_house(store, tmp_path) as house:
        await house.ended(await house.submit(lifecycle=Lifecycle(keep_s=60, acl=acl)))
        [film] = await house.films()
        assert film.expires == pytest.approx(film.created + 60)
        assert film.acl == acl
