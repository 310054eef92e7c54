"""Which devices are connected, and to which gateway."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_MYSQL = {"mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin", "mysql_engine": "InnoDB"}


def upgrade() -> None:
    """Adds the column and makes the tables."""
    op.add_column("device", sa.Column("online", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "gateway_lease",
        sa.Column("gateway_id", sa.String(length=32), nullable=False),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("gateway_id"),
        **_MYSQL,
    )
    op.create_index(op.f("ix_gateway_lease_until_ms"), "gateway_lease", ["until_ms"])
    op.create_table(
        "device_connection",
        sa.Column("device_id", _ID, autoincrement=False, nullable=False),
        sa.Column("gateway_id", sa.String(length=32), nullable=False),
        sa.Column("until_ms", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("device_id", "gateway_id"),
        **_MYSQL,
    )
    op.create_index(op.f("ix_device_connection_until_ms"), "device_connection", ["until_ms"])
    op.create_index("device_connection_by_gateway", "device_connection", ["gateway_id"])
