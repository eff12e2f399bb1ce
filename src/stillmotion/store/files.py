"""Records of hosted files; the bytes lie in the media store."""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, delete, func, insert, or_, select, update
from sqlalchemy.sql.elements import ColumnElement

from stillmotion.store.rows import file_values, to_file
from stillmotion.store.tables import IS_DONE, file, request, upload_part
from stillmotion.types import FileRecord


def add_file(conn: Connection, record: FileRecord) -> None:
    conn.execute(insert(file).values(file_values(record)))


def complete_file(
    conn: Connection,
    file_id: str,
    *,
    size: int,
    digest: str,
    content_type: str,
    now: float,
    media_key: str,
) -> bool:
    """Publish an upload; False when it is already complete, expired or unknown: an upload URL works once.

    `media_key` names the bytes of this very PUT, so that the loser of two at once overwrites nothing.
    From now on it is kept for its `keep_s`.
    """
    completed = conn.execute(
        update(file)
        .where(*is_pending(file_id, now))
        .values(
            size=size,
            digest=digest,
            content_type=content_type,
            media_key=media_key,
            expires=func.coalesce(now + file.c.keep_s, file.c.expires),
            complete=True,
        )
    )
    return completed.rowcount == 1


def is_pending(file_id: str, now: float) -> tuple[ColumnElement[bool], ...]:
    """Choose an upload that is neither complete nor given up."""
    return file.c.id == file_id, ~file.c.complete, or_(file.c.expires.is_(None), file.c.expires > now)


def get_file(conn: Connection, file_id: str) -> FileRecord | None:
    row = conn.execute(select(*file.c).where(file.c.id == file_id)).mappings().one_or_none()
    return None if row is None else to_file(row)


def is_available(record: FileRecord, now: float) -> bool:
    """Tell whether a file's bytes are all here and its time is not over."""
    return record.complete and (record.expires is None or record.expires > now)


def expired_files(conn: Connection, now: float, limit: int) -> list[FileRecord]:
    """List files past their expiry, oldest first; their bytes go first, then `drop_files`."""
    rows = conn.execute(
        select(*file.c).where(file.c.expires <= now).order_by(file.c.expires).limit(limit)
    ).mappings()
    return [to_file(row) for row in rows]


def drop_files(conn: Connection, ids: Sequence[str]) -> None:
    conn.execute(delete(file).where(file.c.id.in_(ids)))


def unrecorded(conn: Connection, keys: Sequence[str]) -> list[str]:
    """Of media keys, list those that neither a file nor a part of one names."""
    named: set[str] = set()
    for table in (file, upload_part):
        named.update(conn.execute(select(table.c.media_key).where(table.c.media_key.in_(keys))).scalars())
    return [key for key in keys if key not in named]


def unnamed_films(conn: Connection, films: Mapping[str, str]) -> list[str]:
    """Of media keys with their request's id, list those whose request is done and names another or none.

    A request not known here says nothing of its film: the bytes may be another database's.
    """
    done = conn.execute(
        select(request.c.id, request.c.result).where(request.c.id.in_(set(films.values())), IS_DONE)
    ).all()
    results = [row.result["file"] for row in done if row.result is not None]
    named = set(conn.execute(select(file.c.media_key).where(file.c.id.in_(results))).scalars())
    ended = {row.id for row in done}
    return [key for key, request_id in films.items() if request_id in ended and key not in named]
