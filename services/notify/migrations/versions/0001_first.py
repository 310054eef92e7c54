"""The first tables."""

from aemos_notify.store import metadata
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes every table."""
    metadata.create_all(op.get_bind())
