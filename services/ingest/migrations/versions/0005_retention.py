"""How long an organization keeps its readings."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """For ever, until somebody says otherwise."""
    op.add_column("organization", sa.Column("retention_days", sa.Integer, nullable=False, server_default="0"))
