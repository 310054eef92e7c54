"""What a protocol repeats is stored once, whichever processes take it."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Makes the table of origins that are being looked for."""
    op.create_table(
        "origin_claim",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("telemetry_data_id", sa.BigInteger(), nullable=False),
        sa.Column("origin_key", sa.BigInteger(), nullable=False),
        sa.Column("before_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    op.create_index(op.f("ix_origin_claim_before_ms"), "origin_claim", ["before_ms"])
    op.create_index("origin_claim_by_origin", "origin_claim", ["telemetry_data_id", "origin_key"])
