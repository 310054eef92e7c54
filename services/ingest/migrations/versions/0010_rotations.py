"""A token that was rotated, and so ends soon, still knows for how long one like it lives."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Adds the lifetime that a token was made with."""
    op.add_column("device_token", sa.Column("lifetime_ms", sa.BigInteger))
    op.execute("UPDATE device_token SET lifetime_ms = expires_at_ms - created_at_ms WHERE expires_at_ms IS NOT NULL")
