from pathlib import Path

import pytest

from stillmotion.store.open import Store
from tests.http.house import House
from tests.manual_clock import ManualClock


@pytest.fixture
def house(sqlite_store: Store, clock: ManualClock, tmp_path: Path) -> House:
    return House(sqlite_store, clock, tmp_path)
