"""A request's log: numbered over all attempts, fenced by attempt, capped."""

from collections.abc import Sequence

from sqlalchemy import Connection, insert, select, update

from stillmotion.store.tables import IS_RUNNING, log, request
from stillmotion.types import Level, LogLine

#: Lines one request may log, over all its attempts.
MAX_LINES = 5_000
#: Characters one request may log (1 Mi).
MAX_CHARS = 1024 * 1024
#: Characters one line may hold (8 Ki); the rest of it is cut.
MAX_LINE_CHARS = 8 * 1024


def append_logs(conn: Connection, request_id: str, attempt: int, lines: Sequence[LogLine]) -> bool:
    """Add lines of a running attempt; False when it no longer holds the request.

    Past the cap one line says so and the rest is dropped.
    """
    messages = [_storable(line.message) for line in lines]
    counted = conn.execute(
        update(request)
        .where(request.c.id == request_id, request.c.attempt == attempt, IS_RUNNING)
        .values(
            log_lines=request.c.log_lines + len(lines),
            log_chars=request.c.log_chars + sum(map(len, messages)),
        )
        .returning(request.c.log_lines, request.c.log_chars)
    ).one_or_none()
    if counted is None:
        return False
    n = counted.log_lines - len(lines)
    chars = counted.log_chars - sum(map(len, messages))
    rows: list[dict[str, object]] = []
    for line, message in zip(lines, messages, strict=True):
        if n >= MAX_LINES or chars >= MAX_CHARS:
            break
        n += 1
        chars += len(message)
        level = line.level
        if n == MAX_LINES or chars >= MAX_CHARS:
            level = Level.WARN
            message = f"truncated: this request logged more than {MAX_LINES} lines or {MAX_CHARS} characters"
        rows.append(
            {
                "request_id": request_id,
                "n": n,
                "attempt": attempt,
                "at": line.at,
                "level": level.value,
                "message": message,
            }
        )
    if rows:
        conn.execute(insert(log), rows)
    return True


def read_logs(conn: Connection, request_id: str, after: int = 0) -> tuple[list[LogLine], int]:
    """Read the lines after a cursor, of all attempts in order, with the cursor for the next call."""
    rows = conn.execute(
        select(log.c.n, log.c.at, log.c.level, log.c.message)
        .where(log.c.request_id == request_id, log.c.n > after)
        .order_by(log.c.n)
    ).all()
    lines = [LogLine(at=row.at, level=Level(row.level), message=row.message) for row in rows]
    return lines, rows[-1].n if rows else after


def _storable(message: str) -> str:
    # PostgreSQL text holds no NUL, and UTF-8 no lone surrogate; a runner's output may hold both.
    clean = message.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")
    if len(clean) > MAX_LINE_CHARS:
        return clean[: MAX_LINE_CHARS - 1] + "…"
    return clean
