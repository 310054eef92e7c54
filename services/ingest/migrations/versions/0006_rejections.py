"""Refused messages of devices."""

import sqlalchemy as sa
from aemos_core.migrations import create_table
from alembic import op

revision = "0006"
down_revision = "0005"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Adds the counters and makes the table."""
    for name in ("rejections_recorded", "rejections_counted"):
        op.add_column("device", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
    create_table(
        "rejection",
        sa.Column(
            "device_id", _ID, sa.ForeignKey("device.id", ondelete="CASCADE"), autoincrement=False, primary_key=True
        ),
        sa.Column("slot", sa.Integer, autoincrement=False, primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("protocol", sa.String(10), nullable=False),
        sa.Column("reason", sa.String(60), nullable=False),
        sa.Column("detail", sa.String(500), nullable=False),
        sa.Column("errors", sa.Text(), nullable=False),
        sa.Column("payload", sa.String(200), nullable=False),
    )
