"""The first tables."""

import sqlalchemy as sa
from aemos_core.migrations import create_table
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Makes every table."""
    create_table(
        "app_user",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("organization_id", sa.BigInteger, nullable=False),
        sa.Column("email", sa.String(254), nullable=False, unique=True),
        sa.Column("password_hash", sa.String(200), nullable=False),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    )
    create_table(
        "audit",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
        sa.Column("organization_id", sa.BigInteger, nullable=False),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        sa.Column("action", sa.String(40), nullable=False),
        sa.Column("target", sa.String(200), nullable=False),
    )
    create_table(
        "data_stream",
        sa.Column("telemetry_data_id", sa.BigInteger, autoincrement=False, primary_key=True),
        sa.Column("received_at_ms", sa.BigInteger, autoincrement=False, primary_key=True),
        sa.Column("id", sa.BigInteger, autoincrement=False, primary_key=True),
        sa.Column(
            "value",
            sa.Text().with_variant(mysql.MEDIUMTEXT(), "mariadb").with_variant(mysql.MEDIUMTEXT(), "mysql"),
            nullable=False,
        ),
        sa.Column("number", sa.Double()),
        sqlite_with_rowid=False,
    )
    create_table(
        "device",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("organization_id", sa.BigInteger, nullable=False),
        sa.Column("uuid", sa.String(64), nullable=False, unique=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("device_by_organization", "device", ["organization_id", "id"])
    create_table(
        "id_block",
        sa.Column("name", sa.String(20), primary_key=True),
        sa.Column("next_id", sa.BigInteger, nullable=False),
    )
    create_table(
        "organization",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    )
    create_table(
        "outbox",
        sa.Column("relay", sa.String(32), primary_key=True),
        sa.Column("seq", sa.BigInteger, autoincrement=False, primary_key=True),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("lane", sa.Integer, nullable=False),
        sa.Column("weight", sa.Integer, nullable=False),
        sa.Column(
            "payload",
            sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mariadb").with_variant(mysql.LONGBLOB(), "mysql"),
            nullable=False,
        ),
    )
    create_table(
        "outbox_relay",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("owner", sa.String(32), nullable=False),
        sa.Column("alive_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("outbox_relay_owner", "outbox_relay", ["owner"])
    create_table(
        "registry_change",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("device_id", sa.BigInteger, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
    )
    create_table(
        "signing_key",
        sa.Column("kid", sa.String(32), primary_key=True),
        sa.Column("private_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    )
    create_table(
        "sensor",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("organization_id", sa.BigInteger, nullable=False),
        sa.Column("device_id", _ID, sa.ForeignKey("device.id", ondelete="CASCADE"), nullable=False),
        sa.Column("uuid", sa.String(64), nullable=False, unique=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("sensor_by_organization", "sensor", ["organization_id", "id"])
    create_table(
        "device_token",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("organization_id", sa.BigInteger, nullable=False),
        sa.Column("device_id", _ID, sa.ForeignKey("device.id", ondelete="CASCADE"), nullable=False),
        sa.Column("sensor_id", _ID, sa.ForeignKey("sensor.id", ondelete="CASCADE")),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column(
            "token_sha256",
            sa.LargeBinary(length=32)
            .with_variant(sa.BINARY(length=32), "mariadb")
            .with_variant(sa.BINARY(length=32), "mysql"),
            nullable=False,
            unique=True,
        ),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("revoked_at_ms", sa.BigInteger),
    )
    create_table(
        "telemetry_data",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("organization_id", sa.BigInteger, nullable=False),
        sa.Column("sensor_id", _ID, sa.ForeignKey("sensor.id", ondelete="CASCADE"), nullable=False),
        sa.Column("variable_name", sa.String(200), nullable=False),
        sa.Column("type", sa.String(10), nullable=False),
        sa.Column("unit", sa.String(40), nullable=False),
        sa.UniqueConstraint("sensor_id", "variable_name", name="telemetry_data_name"),
    )
    op.create_index("telemetry_data_by_organization", "telemetry_data", ["organization_id", "id"])
