"""Alarms and what happened to them."""

import sqlalchemy as sa
from aemos_core.migrations import create_table
from alembic import op

revision = "0002"
down_revision = "0001"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Makes the tables."""
    create_table(
        "alarm",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("organization_id", sa.BigInteger, nullable=False),
        sa.Column("device_id", sa.BigInteger, nullable=False),
        sa.Column("device_uuid", sa.String(64), nullable=False),
        sa.Column("type", sa.String(100), nullable=False),
        sa.Column("latest", sa.Integer),
        sa.Column("severity", sa.String(10), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("message", sa.String(500), nullable=False),
        sa.Column("raised_at_ms", sa.BigInteger, nullable=False),
        sa.Column("cleared_at_ms", sa.BigInteger),
        sa.Column("acknowledged_at_ms", sa.BigInteger),
        sa.Column("rule_chain_id", sa.BigInteger, nullable=False),
        sa.Column("data_stream_id", sa.BigInteger, nullable=False),
        sa.Column("asserted_at_ms", sa.BigInteger, nullable=False),
        sa.Column("asserted_reading_id", sa.BigInteger, nullable=False),
        sa.Column("asserted_chain_id", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("device_id", "type", "latest", name="alarm_latest"),
    )
    op.create_index("alarm_by_organization", "alarm", ["organization_id", "active", "id"])
    create_table(
        "alarm_event",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("alarm_id", _ID, sa.ForeignKey("alarm.id", ondelete="CASCADE"), nullable=False),
        sa.Column("type", sa.String(20), nullable=False),
        sa.Column("severity", sa.String(10), nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("rule_chain_id", sa.BigInteger, nullable=False),
        sa.Column("data_stream_id", sa.BigInteger, nullable=False),
        sa.Column("user_id", sa.BigInteger, nullable=False),
    )
    op.create_index("alarm_event_by_alarm", "alarm_event", ["alarm_id", "id"])
