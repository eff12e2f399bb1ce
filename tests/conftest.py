"""Fixtures for every floor: real databases, a settable clock, asyncio for async tests.

PostgreSQL runs as one cluster per test session, shared by pytest-xdist's processes; each of them has one
database, emptied before each test. `store` runs its test twice, once on each database.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from stillmotion.store.migrate import bring_up_to_date
from stillmotion.store.open import Store, make_url, open_store
from stillmotion.store.tables import metadata
from tests.manual_clock import ManualClock
from tests.postgres import Cluster, postgres

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "only")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[Cluster]:
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    memory = Path("/dev/shm")
    folder = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    with postgres(folder / f"stillmotion-pg-{session}") as cluster:
        # These tests prove logic; durability is proven on the file system elsewhere.
        cluster.run("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
        yield cluster


@pytest.fixture(scope="session")
def new_postgres_database(postgres_cluster: Cluster) -> Callable[[], str]:
    """Give the maker of databases without any table."""
    made = 0

    def create() -> str:
        nonlocal made
        made += 1
        return postgres_cluster.create(f"{WORKER}_{made}")

    return create


@pytest.fixture(scope="session")
def postgres_database(new_postgres_database: Callable[[], str]) -> str:
    url = new_postgres_database()
    bring_up_to_date(make_url(url))
    return url


@pytest.fixture
def postgres_url(postgres_database: str) -> str:
    """The URL of a migrated PostgreSQL database without rows."""
    engine = create_engine(postgres_database)
    with engine.begin() as conn:
        for table in reversed(metadata.sorted_tables):
            conn.execute(table.delete())
    engine.dispose()
    return postgres_database


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "stillmotion.db"
    bring_up_to_date(make_url(f"sqlite:///{path}"))
    return path


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """The URL of a migrated SQLite file without rows."""
    path = tmp_path / "stillmotion.db"
    shutil.copy(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = open_store(store_url)
    yield opened
    opened.close_now()


@pytest.fixture
def sqlite_store(sqlite_url: str) -> Iterator[Store]:
    opened = open_store(sqlite_url)
    yield opened
    opened.close_now()


@pytest.fixture(params=["sqlite", "postgres"])
def blank_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'blank.db'}"
    create: Callable[[], str] = request.getfixturevalue("new_postgres_database")
    return create()
