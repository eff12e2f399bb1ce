"""A COMMIT whose answer is lost, as when PostgreSQL's connection breaks between doing it and saying so."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, Select, event
from sqlalchemy.exc import OperationalError


@contextmanager
def lost_answer(once: Select[Any]) -> Iterator[list[Any]]:
    """Lose the answer to the first COMMIT at which a query finds something; yields what it found."""
    found: list[Any] = []

    def lose(conn: Connection) -> None:
        if not found and (value := conn.execute(once).scalar()) is not None:
            found.append(value)
            conn.connection.commit()
            cause = Exception("the connection is lost")
            raise OperationalError("COMMIT", {}, cause, connection_invalidated=True)

    event.listen(Engine, "commit", lose)
    try:
        yield found
    finally:
        event.remove(Engine, "commit", lose)
