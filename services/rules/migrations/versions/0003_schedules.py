"""Schedules by interval and at one time, their policies, and what changed lately."""

import time

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Adds the columns: what ran by cron goes on as it did, and counts from now."""
    for name in ("interval_seconds", "interval_anchor_ms", "run_at_ms"):
        op.add_column("rule_chain", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    for name, value in (("misfire_policy", "run-once"), ("overlap_policy", "allow")):
        op.add_column("rule_chain", sa.Column(name, sa.String(length=10), nullable=False, server_default=value))
    op.add_column("rule_chain", sa.Column("schedule_paused", sa.Boolean(), nullable=False, server_default="0"))
    now = str(time.time_ns() // 1_000_000)
    op.add_column("rule_chain", sa.Column("schedule_since_ms", sa.BigInteger(), nullable=False, server_default=now))
    op.create_table(
        "rule_chain_change",
        sa.Column("id", _ID, nullable=False),
        sa.Column("rule_chain_id", sa.BigInteger(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    op.create_index(op.f("ix_rule_chain_change_at_ms"), "rule_chain_change", ["at_ms"], unique=False)
