"""The run that changed a state."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Adds a column."""
    run = sa.Column("chain_run_id", sa.BigInteger, nullable=False, server_default=sa.text("0"))
    op.add_column("device_state_instance", run)
