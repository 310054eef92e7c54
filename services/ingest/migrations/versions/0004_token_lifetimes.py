"""When tokens expire and were used, when devices were seen."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds the columns."""
    op.add_column("device_token", sa.Column("expires_at_ms", sa.BigInteger))
    op.add_column("device_token", sa.Column("last_used_at_ms", sa.BigInteger))
    op.add_column("device", sa.Column("last_seen_at_ms", sa.BigInteger))
