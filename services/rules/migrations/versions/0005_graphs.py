"""Connections between nodes, and every version of a chain."""

import sqlalchemy as sa
from aemos_core.migrations import create_table
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0005"
down_revision = "0004"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TEXT = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mariadb").with_variant(mysql.MEDIUMTEXT(), "mysql")


def upgrade() -> None:
    """Adds the column and the table; what chains are now is their first known version."""
    op.add_column("rule_chain", sa.Column("connections", _TEXT))
    create_table(
        "rule_chain_version",
        sa.Column("rule_chain_id", _ID, sa.ForeignKey("rule_chain.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("version", sa.Integer, autoincrement=False, primary_key=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("nodes", _TEXT, nullable=False),
        sa.Column("connections", _TEXT),
        sa.Column("saved_at_ms", sa.BigInteger, nullable=False),
        sa.Column("user_id", sa.BigInteger, nullable=False),
    )
    op.execute(
        "INSERT INTO rule_chain_version (rule_chain_id, version, name, nodes, saved_at_ms, user_id) "
        "SELECT id, version, name, nodes, created_at_ms, 0 FROM rule_chain"
    )
