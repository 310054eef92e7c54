"""How runs ended, which of them are not over, and who claimed an instant."""

import sqlalchemy as sa
from aemos_core.migrations import create_table
from alembic import op

revision = "0002"
down_revision = "0001"


def _key() -> list[sa.Column[int]]:
    return [
        sa.Column("rule_chain_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("planned_at_ms", sa.BigInteger(), autoincrement=False, nullable=False),
    ]


def upgrade() -> None:
    """Adds the columns and the tables."""
    op.add_column("firing", sa.Column("claim", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("firing", sa.Column("manual", sa.Boolean(), nullable=False, server_default="0"))
    op.create_index("firing_by_creation", "firing", ["created_at_ms"], unique=False)
    create_table(
        "firing_end",
        *_key(),
        sa.Column("started_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("finished_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.String(length=10), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("trace_id", sa.String(length=32), nullable=False),
        sa.Column("error", sa.String(length=200), nullable=False),
        sa.PrimaryKeyConstraint("rule_chain_id", "planned_at_ms"),
    )
    create_table(
        "firing_open",
        *_key(),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("queued", sa.Boolean(), nullable=False),
        sa.Column("run", sa.LargeBinary(length=1024), nullable=False),
        sa.PrimaryKeyConstraint("rule_chain_id", "planned_at_ms"),
    )
