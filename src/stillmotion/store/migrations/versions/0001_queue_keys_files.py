"""Queue, requests, logs, outbox, keys and files."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "queue",
        sa.Column("profile", sa.Text, primary_key=True),
        sa.Column("last_ord", sa.BigInteger, nullable=False),
    )
    _create_request()
    op.create_table(
        "log",
        sa.Column("request_id", sa.Text, sa.ForeignKey("request.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("n", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("at", sa.Float(53), nullable=False),
        sa.Column("level", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
    )
    op.create_table(
        "outbox",
        sa.Column("request_id", sa.Text, sa.ForeignKey("request.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("created", sa.Float(53), nullable=False),
        sa.Column("due", sa.Float(53), nullable=False),
        sa.Column("tries", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("last_error", sa.Text),
        sa.Column("delivered", sa.Float(53)),
    )
    _partial_index("outbox_due", "outbox", ["due"], "delivered IS NULL")
    op.create_table(
        "api_key",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("admin", sa.Boolean, nullable=False),
        sa.Column("lim", sa.Integer),
        sa.Column("active", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("created", sa.Float(53), nullable=False),
        sa.Column("expires", sa.Float(53)),
        sa.Column("revoked", sa.Float(53)),
        sa.CheckConstraint("lim >= 1", name="api_key_lim_positive"),
        sa.CheckConstraint("active >= 0", name="api_key_active_positive"),
    )
    op.create_table(
        "file",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("content_type", sa.Text, nullable=False),
        sa.Column("media_key", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("created", sa.Float(53), nullable=False),
        sa.Column("expires", sa.Float(53)),
        sa.Column("complete", sa.Boolean, nullable=False),
    )
    op.create_index("file_expires", "file", ["expires"])


def _create_request() -> None:
    op.create_table(
        "request",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("profile", sa.Text, nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("input", sa.JSON, nullable=False),
        sa.Column("picture", sa.Text),
        sa.Column("queue_base", sa.Text, nullable=False),
        sa.Column("files_base", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("ord", sa.BigInteger, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("crashes", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("created", sa.Float(53), nullable=False),
        sa.Column("owner", sa.Text),
        sa.Column("lease_until", sa.Float(53)),
        sa.Column("cancel_at", sa.Float(53)),
        sa.Column("start_by", sa.Float(53)),
        sa.Column("started", sa.Float(53)),
        sa.Column("finished", sa.Float(53)),
        sa.Column("webhook", sa.Text),
        sa.Column("outcome", sa.Text),
        sa.Column("result", sa.JSON),
        sa.Column("failure", sa.JSON),
        sa.Column("progress", sa.JSON),
        sa.Column("log_lines", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("log_chars", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.CheckConstraint("state IN ('held', 'ready', 'running', 'done')", name="request_state_known"),
        sa.CheckConstraint("outcome IN ('ok', 'error', 'cancelled')", name="request_outcome_known"),
        sa.CheckConstraint(
            "(state = 'done') = (outcome IS NOT NULL AND finished IS NOT NULL)",
            name="request_done_has_outcome",
        ),
        sa.CheckConstraint(
            "(state = 'running') = (owner IS NOT NULL AND lease_until IS NOT NULL)",
            name="request_running_has_lease",
        ),
        postgresql_with={"fillfactor": 70, "autovacuum_vacuum_scale_factor": 0.01},
    )
    waiting = "state IN ('held', 'ready')"
    _partial_index("request_ready", "request", ["profile", "ord"], "state = 'ready'")
    _partial_index("request_waiting", "request", ["profile", "ord"], waiting)
    _partial_index("request_held", "request", ["key_id", "ord"], "state = 'held'")
    _partial_index("request_lease", "request", ["lease_until"], "state = 'running'")
    _partial_index("request_deadline", "request", ["start_by"], f"{waiting} AND start_by IS NOT NULL")
    _partial_index("request_finished", "request", ["finished"], "state = 'done'")


def _partial_index(name: str, table: str, columns: list[str], where: str) -> None:
    op.create_index(name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
