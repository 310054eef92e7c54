"""Alarms and what happened to them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_MYSQL = {"mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin", "mysql_engine": "InnoDB"}


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "alarm",
        sa.Column("id", _ID, nullable=False),
        sa.Column("organization_id", sa.BigInteger(), nullable=False),
        sa.Column("device_id", sa.BigInteger(), nullable=False),
        sa.Column("device_uuid", sa.String(length=64), nullable=False),
        sa.Column("type", sa.String(length=100), nullable=False),
        sa.Column("latest", sa.Integer(), nullable=True),
        sa.Column("severity", sa.String(length=10), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("message", sa.String(length=500), nullable=False),
        sa.Column("raised_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("cleared_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("acknowledged_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("rule_chain_id", sa.BigInteger(), nullable=False),
        sa.Column("data_stream_id", sa.BigInteger(), nullable=False),
        sa.Column("asserted_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("asserted_reading_id", sa.BigInteger(), nullable=False),
        sa.Column("asserted_chain_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("device_id", "type", "latest", name="alarm_latest"),
        **_MYSQL,
    )
    op.create_index("alarm_by_organization", "alarm", ["organization_id", "active", "id"])
    op.create_table(
        "alarm_event",
        sa.Column("id", _ID, nullable=False),
        sa.Column("alarm_id", _ID, nullable=False),
        sa.Column("type", sa.String(length=20), nullable=False),
        sa.Column("severity", sa.String(length=10), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("rule_chain_id", sa.BigInteger(), nullable=False),
        sa.Column("data_stream_id", sa.BigInteger(), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["alarm_id"], ["alarm.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        **_MYSQL,
    )
    op.create_index("alarm_event_by_alarm", "alarm_event", ["alarm_id", "id"])
