"""From bytes to the record that names them, so that those nobody names can be found."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_index("file_media_key", "file", ["media_key"])
