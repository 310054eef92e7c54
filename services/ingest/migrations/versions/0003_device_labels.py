"""Labels and attributes of devices, as JSON."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Adds the columns."""
    op.add_column("device", sa.Column("labels", sa.Text()))
    op.add_column("device", sa.Column("attributes", sa.Text()))
