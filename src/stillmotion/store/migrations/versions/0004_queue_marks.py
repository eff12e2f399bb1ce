"""Marks in deep queues: derived rows, so that a position needs no count of all that wait."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("queue", sa.Column("marks_at", sa.Float(53), nullable=False, server_default=sa.text("0")))
    op.create_table(
        "queue_mark",
        sa.Column("profile", sa.Text, primary_key=True),
        sa.Column("ord", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("rnk", sa.BigInteger, nullable=False),
    )
