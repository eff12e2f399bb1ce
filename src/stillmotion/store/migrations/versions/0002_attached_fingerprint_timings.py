"""What a client waits for on its connection, and how a film was made."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("request", sa.Column("attached", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("request", sa.Column("fingerprint", sa.Text))
    op.add_column("request", sa.Column("timings", sa.JSON))
