"""What a webhook delivery needs beside its address: frozen body, lease, and a place to rest when given up."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("outbox", sa.Column("host", sa.Text, nullable=False, server_default=""))
    op.add_column("outbox", sa.Column("body", sa.LargeBinary))
    op.add_column("outbox", sa.Column("lease_until", sa.Float(53)))
    op.add_column("outbox", sa.Column("parked", sa.Float(53)))
    op.drop_index("outbox_due", "outbox")
    _partial_index("outbox_due", "due", "delivered IS NULL AND parked IS NULL")
    _partial_index("outbox_undelivered", "request_id", "delivered IS NULL")


def _partial_index(name: str, column: str, where: str) -> None:
    op.create_index(name, "outbox", [column], sqlite_where=sa.text(where), postgresql_where=sa.text(where))
