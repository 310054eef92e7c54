"""Recorded runs, and chains that are suspended because they only fail."""

import sqlalchemy as sa
from aemos_core.migrations import create_table
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0007"
down_revision = "0006"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Adds columns and a table."""
    zero, empty = sa.text("0"), sa.text("''")
    op.add_column("rule_chain", sa.Column("suspended_at_ms", sa.BigInteger, nullable=False, server_default=zero))
    op.add_column("rule_chain", sa.Column("suspension", sa.String(500), nullable=False, server_default=empty))
    create_table(
        "chain_run",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("rule_chain_id", _ID, sa.ForeignKey("rule_chain.id", ondelete="CASCADE"), nullable=False),
        sa.Column("organization_id", sa.BigInteger, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("trigger_kind", sa.String(20), nullable=False),
        sa.Column("data_stream_id", sa.BigInteger, nullable=False),
        sa.Column("device_uuid", sa.String(64), nullable=False),
        sa.Column("sensor_uuid", sa.String(64), nullable=False),
        sa.Column("outcome", sa.String(20), nullable=False),
        sa.Column("error", sa.String(500), nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("recorded_at_ms", sa.BigInteger, nullable=False, index=True),
        sa.Column("trace_id", sa.String(32), nullable=False),
        sa.Column(
            "detail",
            sa.Text().with_variant(mysql.MEDIUMTEXT(), "mariadb").with_variant(mysql.MEDIUMTEXT(), "mysql"),
            nullable=False,
        ),
    )
    op.create_index("chain_run_by_chain", "chain_run", ["rule_chain_id", "id"])
