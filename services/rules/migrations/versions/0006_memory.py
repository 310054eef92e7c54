"""What nodes remember, and runs that go on later."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0006"
down_revision = "0005"

_BYTES = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mariadb").with_variant(mysql.LONGBLOB(), "mysql")
_ARGS = {"mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin", "mysql_engine": "InnoDB"}


def _cell() -> list[sa.Column]:
    return [
        sa.Column("rule_chain_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("node", sa.String(length=200), nullable=False),
        sa.Column("cell_key", sa.String(length=64), nullable=False),
    ]


def upgrade() -> None:
    """Makes the tables."""
    key = ("rule_chain_id", "node", "cell_key")
    op.create_table(
        "node_memory", *_cell(), sa.Column("value", _BYTES, nullable=False), sa.PrimaryKeyConstraint(*key), **_ARGS
    )
    op.create_table(
        "deadline",
        *_cell(),
        sa.Column("due_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("lane", sa.Integer(), nullable=False),
        sa.Column("run", _BYTES, nullable=False),
        sa.PrimaryKeyConstraint(*key),
        **_ARGS,
    )
    op.create_index(op.f("ix_deadline_due_at_ms"), "deadline", ["due_at_ms"], unique=False)
    op.create_table(
        "memory_owner",
        sa.Column("lane", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("owner", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("lane"),
        **_ARGS,
    )
