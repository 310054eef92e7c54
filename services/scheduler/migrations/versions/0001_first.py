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
        "firing",
        sa.Column("rule_chain_id", sa.BigInteger, autoincrement=False, primary_key=True),
        sa.Column("planned_at_ms", sa.BigInteger, autoincrement=False, primary_key=True),
        sa.Column("organization_id", sa.BigInteger, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    )
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
