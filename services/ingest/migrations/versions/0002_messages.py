"""Devices that create variables, readings that are told apart when they come twice."""

import sqlalchemy as sa
from aemos_core.migrations import create_table
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds columns and a table."""
    op.add_column("device", sa.Column("creates_variables", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.add_column("data_stream", sa.Column("origin_key", sa.BigInteger))
    create_table(
        "reading_message",
        sa.Column("device_id", sa.BigInteger, autoincrement=False, primary_key=True),
        sa.Column("message_id", sa.String(128), primary_key=True),
        sa.Column(
            "digest", sa.LargeBinary(length=16).with_variant(mysql.BINARY(16), "mysql", "mariadb"), nullable=False
        ),
        sa.Column("reading_id", sa.BigInteger, nullable=False),
        sa.Column("received_at_ms", sa.BigInteger, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
    )
