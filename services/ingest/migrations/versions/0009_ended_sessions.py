"""Users can log out."""

import sqlalchemy as sa
from aemos_core.migrations import create_table

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Makes the table of sessions that have ended."""
    create_table(
        "ended_session",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
    )
