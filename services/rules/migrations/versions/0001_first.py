"""The first tables."""

from aemos_rules.tables import metadata
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    metadata.create_all(op.get_bind())
