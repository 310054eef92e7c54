"""Reports, for a while."""

import sqlalchemy as sa
from aemos_core.migrations import create_table
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0004"
down_revision = "0003"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _text() -> sa.types.TypeEngine[str]:
    return sa.Text().with_variant(mysql.MEDIUMTEXT(), "mariadb").with_variant(mysql.MEDIUMTEXT(), "mysql")


def upgrade() -> None:
    """Makes the table."""
    create_table(
        "report",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("organization_id", sa.BigInteger, nullable=False),
        sa.Column("rule_chain_id", sa.BigInteger, nullable=False),
        sa.Column("job_key", sa.String(64), nullable=False),
        sa.Column("title", sa.String(200), nullable=False),
        sa.Column("from_ms", sa.BigInteger, nullable=False),
        sa.Column("to_ms", sa.BigInteger, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger, nullable=False, index=True),
        sa.Column("html", _text(), nullable=False),
        sa.Column("csv", _text(), nullable=False),
        sa.UniqueConstraint("job_key", name="report_job"),
    )
    op.create_index("report_by_organization", "report", ["organization_id", "id"])
