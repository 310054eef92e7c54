"""Subscriptions, deliveries and read cursors; the outbox and the audit of notify."""

import sqlalchemy as sa
from aemos_core.migrations import create_table
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0003"
down_revision = "0002"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Makes the tables."""
    _subscriptions()
    _deliveries()
    create_table(
        "read_cursor",
        sa.Column("organization_id", sa.BigInteger, autoincrement=False, primary_key=True),
        sa.Column("user_id", sa.BigInteger, autoincrement=False, primary_key=True),
        sa.Column("ms", sa.BigInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
    )
    _outbox_and_audit()


def _subscriptions() -> None:
    create_table(
        "subscription",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("organization_id", sa.BigInteger, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("channel", sa.String(20), nullable=False),
        sa.Column("target", sa.String(2000), nullable=False),
        sa.Column("filter", sa.Text(), nullable=False),
        sa.Column("subject_template", sa.String(1000), nullable=False),
        sa.Column("body_template", sa.Text(), nullable=False),
        sa.Column("hourly_limit", sa.Integer, nullable=False),
        sa.Column("repeat_minutes", sa.Integer, nullable=False),
        sa.Column("secret", sa.String(100), nullable=False),
        sa.Column("old_secret", sa.String(100), nullable=False),
        sa.Column("old_until_ms", sa.BigInteger, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("subscription_by_organization", "subscription", ["organization_id", "id"])


def _deliveries() -> None:
    create_table(
        "delivery",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("organization_id", sa.BigInteger, nullable=False),
        sa.Column("subscription_id", _ID, sa.ForeignKey("subscription.id", ondelete="CASCADE"), nullable=False),
        sa.Column("ms", sa.BigInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("repeats", sa.Integer, nullable=False),
        sa.Column("answer", sa.String(500), nullable=False),
        sa.Column("queued_at_ms", sa.BigInteger, nullable=False),
        sa.Column("sent_at_ms", sa.BigInteger),
        sa.Column("due_at_ms", sa.BigInteger),
        sa.UniqueConstraint("subscription_id", "ms", "seq", name="delivery_once"),
    )
    op.create_index("delivery_by_organization", "delivery", ["organization_id", "id"])
    op.create_index("delivery_by_subscription", "delivery", ["subscription_id", "queued_at_ms"])
    op.create_index("delivery_due", "delivery", ["due_at_ms"])


def _outbox_and_audit() -> None:
    create_table(
        "outbox",
        sa.Column("relay", sa.String(32), primary_key=True),
        sa.Column("seq", sa.BigInteger, autoincrement=False, primary_key=True),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("lane", sa.Integer, nullable=False),
        sa.Column("weight", sa.Integer, nullable=False),
        sa.Column("payload", sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb"), nullable=False),
    )
    create_table(
        "outbox_relay",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("owner", sa.String(32), nullable=False),
        sa.Column("alive_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("outbox_relay_owner", "outbox_relay", ["owner"])
    create_table(
        "audit",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
        sa.Column("organization_id", sa.BigInteger, nullable=False),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        sa.Column("action", sa.String(40), nullable=False),
        sa.Column("target", sa.String(200), nullable=False),
    )
