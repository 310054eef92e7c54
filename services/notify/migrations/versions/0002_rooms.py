"""The ledger knows in which rooms a notification was heard."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds the column; what is older stays without."""
    op.add_column("notification", sa.Column("rooms", sa.Text()))
