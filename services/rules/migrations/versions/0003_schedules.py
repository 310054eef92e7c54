"""Schedules by interval and at one time, their policies, and what changed lately."""

import time

import sqlalchemy as sa
from aemos_core.migrations import create_table
from alembic import op

revision = "0003"
down_revision = "0002"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Adds the columns: what ran by cron goes on as it did, and counts from now."""
    for name in ("interval_seconds", "interval_anchor_ms", "run_at_ms"):
        op.add_column("rule_chain", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
    for name, value in (("misfire_policy", "run-once"), ("overlap_policy", "allow")):
        op.add_column("rule_chain", sa.Column(name, sa.String(10), nullable=False, server_default=value))
    op.add_column("rule_chain", sa.Column("schedule_paused", sa.Boolean(), nullable=False, server_default="0"))
    now = str(time.time_ns() // 1_000_000)
    op.add_column("rule_chain", sa.Column("schedule_since_ms", sa.BigInteger, nullable=False, server_default=now))
    create_table(
        "rule_chain_change",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("rule_chain_id", sa.BigInteger, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
    )
