"""Uploads in parts, and a life and readers of its own for each file."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("request", sa.Column("lifecycle", sa.JSON))
    op.add_column("file", sa.Column("keep_s", sa.Float(53)))
    op.add_column("file", sa.Column("acl", sa.JSON))
    op.create_table(
        "upload_part",
        sa.Column("file_id", sa.Text, sa.ForeignKey("file.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("media_key", sa.Text, nullable=False),
    )
