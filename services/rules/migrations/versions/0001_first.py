"""The first tables."""

import sqlalchemy as sa
from aemos_core.migrations import create_table
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Makes every table."""
    create_table(
        "audit",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
        sa.Column("organization_id", sa.BigInteger, nullable=False),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        sa.Column("action", sa.String(40), nullable=False),
        sa.Column("target", sa.String(200), nullable=False),
    )
    create_table(
        "device_state",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("organization_id", sa.BigInteger, nullable=False),
        sa.Column("device_id", sa.BigInteger, nullable=False),
        sa.Column("device_uuid", sa.String(64), nullable=False, index=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("default_value", sa.String(200), nullable=False),
        sa.Column("value", sa.String(200), nullable=False),
        sa.Column("changed_at_ms", sa.BigInteger),
        sa.Column("asserted_at_ms", sa.BigInteger, nullable=False),
        sa.Column("asserted_reading_id", sa.BigInteger, nullable=False),
        sa.Column("asserted_chain_id", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("device_id", "name", name="device_state_name"),
    )
    op.create_index("device_state_by_organization", "device_state", ["organization_id", "id"])
    create_table(
        "outbox",
        sa.Column("relay", sa.String(32), primary_key=True),
        sa.Column("seq", sa.BigInteger, autoincrement=False, primary_key=True),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("lane", sa.Integer, nullable=False),
        sa.Column("weight", sa.Integer, nullable=False),
        sa.Column(
            "payload",
            sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mariadb").with_variant(mysql.LONGBLOB(), "mysql"),
            nullable=False,
        ),
    )
    create_table(
        "outbox_relay",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("owner", sa.String(32), nullable=False),
        sa.Column("alive_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("outbox_relay_owner", "outbox_relay", ["owner"])
    create_table(
        "rule_chain",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("organization_id", sa.BigInteger, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column(
            "nodes",
            sa.Text().with_variant(mysql.MEDIUMTEXT(), "mariadb").with_variant(mysql.MEDIUMTEXT(), "mysql"),
            nullable=False,
        ),
        sa.Column("schedule_enabled", sa.Boolean(), nullable=False, index=True),
        sa.Column("cron_expression", sa.String(100), nullable=False),
        sa.Column("timezone", sa.String(64), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("rule_chain_by_organization", "rule_chain", ["organization_id", "id"])
    create_table(
        "device_state_instance",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("device_state_id", _ID, sa.ForeignKey("device_state.id", ondelete="CASCADE"), nullable=False),
        sa.Column("value", sa.String(200), nullable=False),
        sa.Column("old_value", sa.String(200), nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("rule_chain_id", sa.BigInteger, nullable=False),
        sa.Column("data_stream_id", sa.BigInteger, nullable=False),
        sa.Column("user_id", sa.BigInteger, nullable=False),
    )
    op.create_index("device_state_instance_by_state", "device_state_instance", ["device_state_id", "id"])
    create_table(
        "rule_chain_sensor",
        sa.Column("sensor_uuid", sa.String(64), primary_key=True),
        sa.Column("rule_chain_id", _ID, sa.ForeignKey("rule_chain.id", ondelete="CASCADE"), primary_key=True),
    )
