"""The first tables."""

from aemos_core.database import create_all
from aemos_notify.store import metadata
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes every table."""
    create_all(metadata)(op.get_bind())
