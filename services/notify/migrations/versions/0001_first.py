"""The first tables."""

import sqlalchemy as sa
from aemos_core.migrations import create_table
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes every table."""
    create_table(
        "ledger_cursor",
        sa.Column("organization_id", sa.BigInteger, autoincrement=False, primary_key=True),
        sa.Column("ms", sa.BigInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
    )
    create_table(
        "notification",
        sa.Column("organization_id", sa.BigInteger, autoincrement=False, primary_key=True),
        sa.Column("ms", sa.BigInteger, autoincrement=False, primary_key=True),
        sa.Column("seq", sa.BigInteger, autoincrement=False, primary_key=True),
        sa.Column("type", sa.String(100), nullable=False),
        sa.Column("device_uuid", sa.String(64), nullable=False),
        sa.Column(
            "body",
            sa.Text().with_variant(mysql.MEDIUMTEXT(), "mariadb").with_variant(mysql.MEDIUMTEXT(), "mysql"),
            nullable=False,
        ),
        sa.Column("recorded_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index(
        "notification_by_device", "notification", ["organization_id", "device_uuid", "ms", "seq"], unique=False
    )
