"""Which devices are connected, and to which gateway."""

import sqlalchemy as sa
from aemos_core.migrations import create_table
from alembic import op

revision = "0007"
down_revision = "0006"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Adds the column and makes the tables."""
    op.add_column("device", sa.Column("online", sa.Boolean(), nullable=False, server_default=sa.false()))
    create_table(
        "gateway_lease",
        sa.Column("gateway_id", sa.String(32), primary_key=True),
        sa.Column("until_ms", sa.BigInteger, nullable=False, index=True),
    )
    create_table(
        "device_connection",
        sa.Column(
            "device_id", _ID, sa.ForeignKey("device.id", ondelete="CASCADE"), autoincrement=False, primary_key=True
        ),
        sa.Column("gateway_id", sa.String(32), primary_key=True),
        sa.Column("until_ms", sa.BigInteger, index=True),
    )
    op.create_index("device_connection_by_gateway", "device_connection", ["gateway_id"])
