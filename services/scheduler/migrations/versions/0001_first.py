"""The first tables."""

from aemos_scheduler.store import metadata
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Firings and the outbox."""
    metadata.create_all(op.get_bind())
