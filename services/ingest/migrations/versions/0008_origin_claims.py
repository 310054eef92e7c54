"""What a protocol repeats is stored once, whichever processes take it."""

import sqlalchemy as sa
from aemos_core.migrations import create_table
from alembic import op

revision = "0008"
down_revision = "0007"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Makes the table of origins that are being looked for."""
    create_table(
        "origin_claim",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("telemetry_data_id", sa.BigInteger, nullable=False),
        sa.Column("origin_key", sa.BigInteger, nullable=False),
        sa.Column("before_ms", sa.BigInteger, nullable=False, index=True),
    )
    op.create_index("origin_claim_by_origin", "origin_claim", ["telemetry_data_id", "origin_key"])
