"""What nodes remember, and runs that go on later."""

import sqlalchemy as sa
from aemos_core.migrations import create_table
from sqlalchemy.dialects import mysql

revision = "0006"
down_revision = "0005"

_BYTES = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mariadb").with_variant(mysql.LONGBLOB(), "mysql")


def _cell() -> list[sa.Column]:
    return [
        sa.Column("rule_chain_id", sa.BigInteger(), autoincrement=False, primary_key=True),
        sa.Column("node", sa.String(200), primary_key=True),
        sa.Column("cell_key", sa.String(64), primary_key=True),
    ]


def upgrade() -> None:
    """Makes the tables."""
    create_table("node_memory", *_cell(), sa.Column("value", _BYTES, nullable=False))
    create_table(
        "deadline",
        *_cell(),
        sa.Column("due_at_ms", sa.BigInteger, nullable=False, index=True),
        sa.Column("lane", sa.Integer, nullable=False),
        sa.Column("run", _BYTES, nullable=False),
    )
    create_table(
        "memory_owner",
        sa.Column("lane", sa.Integer, autoincrement=False, primary_key=True),
        sa.Column("owner", sa.String(32), nullable=False),
    )
