"""Limits and rotation of keys, replays of a submit, and requests whose payload is not kept."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    for column in (
        sa.Column("old_digest", sa.Text),
        sa.Column("old_until", sa.Float(53)),
        sa.Column("submits_per_minute", sa.Integer),
        sa.Column("minute_began", sa.Float(53), nullable=False, server_default=sa.text("0")),
        sa.Column("minute_submits", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("upload_bytes_per_day", sa.BigInteger),
        sa.Column("day_began", sa.Float(53), nullable=False, server_default=sa.text("0")),
        sa.Column("day_upload_bytes", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    ):
        op.add_column("api_key", column)
    for column in (
        sa.Column("idempotency_key", sa.Text),
        sa.Column("idempotency_digest", sa.Text),
        sa.Column("store_io", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("retry", sa.Boolean, nullable=False, server_default=sa.true()),
    ):
        op.add_column("request", column)
    replays = sa.text("idempotency_key IS NOT NULL")
    op.create_index(
        "request_idempotency",
        "request",
        ["key_id", "idempotency_key"],
        unique=True,
        sqlite_where=replays,
        postgresql_where=replays,
    )
    unstored = sa.text("state = 'done' AND NOT store_io")
    op.create_index(
        "request_unstored", "request", ["finished"], sqlite_where=unstored, postgresql_where=unstored
    )
