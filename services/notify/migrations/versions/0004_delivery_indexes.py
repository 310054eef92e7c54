"""Deliveries are found by status, and those of the last hour counted without reading them."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Makes the new indexes before the old one goes, on which the foreign key leans."""
    op.create_index("delivery_by_status", "delivery", ["organization_id", "status", "id"])
    op.create_index("delivery_lately", "delivery", ["subscription_id", "queued_at_ms", "status"])
    op.drop_index("delivery_by_subscription", "delivery")
