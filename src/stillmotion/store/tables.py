"""The tables, as SQLAlchemy Core sees them; `migrations/` builds them and a test holds both equal.

Partial indexes carry the queue: each live state has its own small B-tree, so a claim stays one index step
however many finished requests are kept. PostgreSQL options thin out dead tuples of the busiest table.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    false,
    text,
    true,
)

metadata = MetaData()

#: Predicates are spelled once, as literals: a bound parameter would hide a partial index from both planners.
IS_HELD = text("state = 'held'")
IS_READY = text("state = 'ready'")
IS_WAITING = text("state IN ('held', 'ready')")
IS_RUNNING = text("state = 'running'")
IS_DONE = text("state = 'done'")
IS_UNSTORED = text("state = 'done' AND NOT store_io")
HAS_IDEMPOTENCY_KEY = text("idempotency_key IS NOT NULL")
HAS_DEADLINE = text("state IN ('held', 'ready') AND start_by IS NOT NULL")
IS_TO_SEND = text("delivered IS NULL AND parked IS NULL")
IS_UNDELIVERED = text("delivered IS NULL")

queue = Table(
    "queue",
    metadata,
    Column("profile", Text, primary_key=True),
    #: Highest normal `ord` given out; never goes back, whatever the clock does.
    Column("last_ord", BigInteger, nullable=False),
    #: When the rebuild of its marks began that somebody won last.
    Column("marks_at", Float(53), nullable=False, server_default=text("0")),
)

queue_mark = Table(
    "queue_mark",
    metadata,
    Column("profile", Text, primary_key=True),
    Column("ord", BigInteger, primary_key=True, autoincrement=False),
    #: How many waited ahead when the marks were set.
    Column("rnk", BigInteger, nullable=False),
)

request = Table(
    "request",
    metadata,
    Column("id", Text, primary_key=True),
    Column("profile", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("input", JSON(none_as_null=True), nullable=False),
    Column("picture", Text),
    Column("queue_base", Text, nullable=False),
    Column("files_base", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("ord", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("crashes", Integer, nullable=False, server_default=text("0")),
    Column("created", Float(53), nullable=False),
    Column("owner", Text),
    Column("lease_until", Float(53)),
    Column("cancel_at", Float(53)),
    Column("start_by", Float(53)),
    Column("started", Float(53)),
    Column("finished", Float(53)),
    Column("webhook", Text),
    Column("outcome", Text),
    Column("result", JSON(none_as_null=True)),
    Column("failure", JSON(none_as_null=True)),
    Column("progress", JSON(none_as_null=True)),
    #: Lines and characters logged so far, over all attempts: numbering and cap in one row.
    Column("log_lines", Integer, nullable=False, server_default=text("0")),
    Column("log_chars", BigInteger, nullable=False, server_default=text("0")),
    Column("attached", Boolean, nullable=False, server_default=false()),
    Column("fingerprint", Text),
    Column("timings", JSON(none_as_null=True)),
    Column("lifecycle", JSON(none_as_null=True)),
    Column("idempotency_key", Text),
    #: SHA-256 hex of endpoint and body: the same idempotency key beside another one is a mistake.
    Column("idempotency_digest", Text),
    #: False: the payload is not to be kept once the request has ended.
    Column("store_io", Boolean, nullable=False, server_default=true()),
    #: False: the first death of a runner fails it.
    Column("retry", Boolean, nullable=False, server_default=true()),
    CheckConstraint("state IN ('held', 'ready', 'running', 'done')", name="request_state_known"),
    CheckConstraint("outcome IN ('ok', 'error', 'cancelled')", name="request_outcome_known"),
    CheckConstraint(
        "(state = 'done') = (outcome IS NOT NULL AND finished IS NOT NULL)", name="request_done_has_outcome"
    ),
    CheckConstraint(
        "(state = 'running') = (owner IS NOT NULL AND lease_until IS NOT NULL)",
        name="request_running_has_lease",
    ),
    Index("request_ready", "profile", "ord", sqlite_where=IS_READY, postgresql_where=IS_READY),
    Index("request_waiting", "profile", "ord", sqlite_where=IS_WAITING, postgresql_where=IS_WAITING),
    Index("request_held", "key_id", "ord", sqlite_where=IS_HELD, postgresql_where=IS_HELD),
    Index("request_lease", "lease_until", sqlite_where=IS_RUNNING, postgresql_where=IS_RUNNING),
    Index("request_deadline", "start_by", sqlite_where=HAS_DEADLINE, postgresql_where=HAS_DEADLINE),
    Index("request_finished", "finished", sqlite_where=IS_DONE, postgresql_where=IS_DONE),
    Index("request_unstored", "finished", sqlite_where=IS_UNSTORED, postgresql_where=IS_UNSTORED),
    Index(
        "request_idempotency",
        "key_id",
        "idempotency_key",
        unique=True,
        sqlite_where=HAS_IDEMPOTENCY_KEY,
        postgresql_where=HAS_IDEMPOTENCY_KEY,
    ),
    # Every request is updated two to four times: room on the page and an eager vacuum keep it compact.
    postgresql_with={"fillfactor": 70, "autovacuum_vacuum_scale_factor": 0.01},
)

log = Table(
    "log",
    metadata,
    Column("request_id", Text, ForeignKey("request.id", ondelete="CASCADE"), primary_key=True),
    #: Counts over all attempts, so one number is a reader's cursor.
    Column("n", Integer, primary_key=True, autoincrement=False),
    Column("attempt", Integer, nullable=False),
    Column("at", Float(53), nullable=False),
    Column("level", Text, nullable=False),
    Column("message", Text, nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("request_id", Text, ForeignKey("request.id", ondelete="CASCADE"), primary_key=True),
    Column("url", Text, nullable=False),
    Column("created", Float(53), nullable=False),
    Column("due", Float(53), nullable=False),
    #: Deliveries begun since it was announced or asked for again; with the lease it fences.
    Column("tries", Integer, nullable=False, server_default=text("0")),
    Column("last_error", Text),
    Column("delivered", Float(53)),
    #: Host and port of the receiver, lower case.
    Column("host", Text, nullable=False, server_default=text("''")),
    #: The bytes of the first try; every later one sends the same.
    Column("body", LargeBinary),
    Column("lease_until", Float(53)),
    #: Given up; waits for an operator.
    Column("parked", Float(53)),
    Index("outbox_due", "due", sqlite_where=IS_TO_SEND, postgresql_where=IS_TO_SEND),
    Index("outbox_undelivered", "request_id", sqlite_where=IS_UNDELIVERED, postgresql_where=IS_UNDELIVERED),
)

api_key = Table(
    "api_key",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    #: SHA-256 hex of the secret.
    Column("digest", Text, nullable=False),
    #: That of the secret before the last rotation, and until when it is still taken.
    Column("old_digest", Text),
    Column("old_until", Float(53)),
    Column("admin", Boolean, nullable=False),
    #: Most requests ready or running at once. NULL in any limit means none, and then this row is not
    #: written to count what it would count.
    Column("lim", Integer),
    Column("active", Integer, nullable=False, server_default=text("0")),
    Column("submits_per_minute", Integer),
    Column("minute_began", Float(53), nullable=False, server_default=text("0")),
    Column("minute_submits", Integer, nullable=False, server_default=text("0")),
    Column("upload_bytes_per_day", BigInteger),
    Column("day_began", Float(53), nullable=False, server_default=text("0")),
    Column("day_upload_bytes", BigInteger, nullable=False, server_default=text("0")),
    Column("created", Float(53), nullable=False),
    Column("expires", Float(53)),
    Column("revoked", Float(53)),
    CheckConstraint("lim >= 1", name="api_key_lim_positive"),
    CheckConstraint("active >= 0", name="api_key_active_positive"),
)

file = Table(
    "file",
    metadata,
    Column("id", Text, primary_key=True),
    Column("key_id", Text, nullable=False),
    Column("request_id", Text),
    Column("name", Text, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("media_key", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    Column("created", Float(53), nullable=False),
    Column("expires", Float(53)),
    Column("complete", Boolean, nullable=False),
    Column("keep_s", Float(53)),
    Column("acl", JSON(none_as_null=True)),
    Index("file_expires", "expires"),
    Index("file_media_key", "media_key"),
)

upload_part = Table(
    "upload_part",
    metadata,
    Column("file_id", Text, ForeignKey("file.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("size", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    Column("media_key", Text, nullable=False),
)
