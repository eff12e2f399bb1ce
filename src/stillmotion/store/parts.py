"""Parts of uploads that come in pieces: kept until the whole is complete or abandoned."""

from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from stillmotion.store.files import is_pending
from stillmotion.store.tables import file, upload_part
from stillmotion.types import UploadPart


@dataclass(frozen=True, slots=True)
class Placed:
    """A part that was recorded."""

    #: Bytes of all parts together.
    total: int
    #: Media key of an earlier try at this part, now without a record.
    replaced: str | None


def put_part(conn: Connection, file_id: str, part: UploadPart, now: float) -> Placed | None:
    """Record a part in place of an earlier try; None when its upload is complete, given up or unknown."""
    pending = select(file.c.size).where(*is_pending(file_id, now))
    # Locked, so that parts arriving at once add up.
    size = conn.execute(pending.with_for_update()).scalar_one_or_none()
    if size is None:
        return None
    earlier = conn.execute(
        delete(upload_part)
        .where(upload_part.c.file_id == file_id, upload_part.c.number == part.number)
        .returning(upload_part.c.size, upload_part.c.media_key)
    ).one_or_none()
    conn.execute(
        insert(upload_part).values(
            file_id=file_id,
            number=part.number,
            size=part.size,
            digest=part.digest,
            media_key=part.media_key,
        )
    )
    total = size + part.size - (earlier.size if earlier else 0)
    conn.execute(update(file).where(file.c.id == file_id).values(size=total))
    return Placed(total, earlier.media_key if earlier else None)


def get_parts(conn: Connection, file_id: str) -> list[UploadPart]:
    """List the parts of an upload in the order of their bytes."""
    columns = [column for column in upload_part.c if column is not upload_part.c.file_id]
    rows = conn.execute(
        select(*columns).where(upload_part.c.file_id == file_id).order_by(upload_part.c.number)
    )
    return [UploadPart(**row) for row in rows.mappings()]


def drop_parts(conn: Connection, file_id: str) -> None:
    conn.execute(delete(upload_part).where(upload_part.c.file_id == file_id))
