"""The tables of ingest's database."""

from __future__ import annotations

from typing import Any

from aemos_core.audit import audit_table
from aemos_core.database import TABLE_ARGS, Id
from aemos_core.outbox import OutboxTables
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)
from sqlalchemy.dialects.mysql import BINARY, MEDIUMTEXT
from sqlalchemy.schema import SchemaItem

metadata = MetaData()
outbox = OutboxTables(metadata)
audit = audit_table(metadata)
_Digest = LargeBinary(32).with_variant(BINARY(32), "mysql", "mariadb")


def _table(name: str, *columns: SchemaItem, **options: Any) -> Table:
    return Table(name, metadata, *columns, **options, **TABLE_ARGS)


organization = _table(
    "organization",
    Column("id", Id, primary_key=True),
    Column("name", String(200), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("retention_days", Integer, nullable=False, server_default="0"),
)
user = _table(
    "app_user",
    Column("id", Id, primary_key=True),
    Column("organization_id", BigInteger, nullable=False),
    Column("email", String(254), nullable=False, unique=True),
    Column("password_hash", String(200), nullable=False),
    Column("role", String(20), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
)
signing_key = _table(
    "signing_key",
    Column("kid", String(32), primary_key=True),
    Column("private_key", LargeBinary(32), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
)
device = _table(
    "device",
    Column("id", Id, primary_key=True),
    Column("organization_id", BigInteger, nullable=False),
    Column("uuid", String(64), nullable=False, unique=True),
    Column("name", String(200), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("creates_variables", Boolean, nullable=False),
    Column("labels", Text),
    Column("attributes", Text),
    Column("last_seen_at_ms", BigInteger),
    Column("online", Boolean, nullable=False, server_default=false()),
    Column("rejections_recorded", BigInteger, nullable=False, server_default="0"),
    Column("rejections_counted", BigInteger, nullable=False, server_default="0"),
    Index("device_by_organization", "organization_id", "id"),
)
sensor = _table(
    "sensor",
    Column("id", Id, primary_key=True),
    Column("organization_id", BigInteger, nullable=False),
    Column("device_id", Id, ForeignKey("device.id", ondelete="CASCADE"), nullable=False),
    Column("uuid", String(64), nullable=False, unique=True),
    Column("name", String(200), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Index("sensor_by_organization", "organization_id", "id"),
)
telemetry_data = _table(
    "telemetry_data",
    Column("id", Id, primary_key=True),
    Column("organization_id", BigInteger, nullable=False),
    Column("sensor_id", Id, ForeignKey("sensor.id", ondelete="CASCADE"), nullable=False),
    Column("variable_name", String(200), nullable=False),
    Column("type", String(10), nullable=False),
    Column("unit", String(40), nullable=False),
    UniqueConstraint("sensor_id", "variable_name", name="telemetry_data_name"),
    Index("telemetry_data_by_organization", "organization_id", "id"),
)
device_token = _table(
    "device_token",
    Column("id", Id, primary_key=True),
    Column("organization_id", BigInteger, nullable=False),
    Column("device_id", Id, ForeignKey("device.id", ondelete="CASCADE"), nullable=False),
    Column("sensor_id", Id, ForeignKey("sensor.id", ondelete="CASCADE")),
    Column("name", String(200), nullable=False),
    Column("token_sha256", _Digest, nullable=False, unique=True),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("revoked_at_ms", BigInteger),
    Column("expires_at_ms", BigInteger),
    Column("lifetime_ms", BigInteger),  # as it was made; rotation ends it sooner
    Column("last_used_at_ms", BigInteger),
)
# Clustered by what is asked for: one variable, a range of time. An insert touches one page, a day is read in one sweep.
data_stream = _table(
    "data_stream",
    Column("telemetry_data_id", BigInteger, primary_key=True, autoincrement=False),
    Column("received_at_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("value", Text().with_variant(MEDIUMTEXT, "mysql", "mariadb"), nullable=False),
    Column("number", Double),
    Column("origin_key", BigInteger),
    sqlite_with_rowid=False,
)
# What devices named by a messageId: which reading it became, for a day.
reading_message = _table(
    "reading_message",
    Column("device_id", BigInteger, primary_key=True, autoincrement=False),
    Column("message_id", String(128), primary_key=True),
    Column("digest", LargeBinary(16).with_variant(BINARY(16), "mysql", "mariadb"), nullable=False),
    Column("reading_id", BigInteger, nullable=False),
    Column("received_at_ms", BigInteger, nullable=False),
    Column("at_ms", BigInteger, nullable=False, index=True),
)
# Origins of which a repetition is being stored, for ten minutes: other processes look here before they store the same.
origin_claim = _table(
    "origin_claim",
    Column("id", Id, primary_key=True),
    Column("telemetry_data_id", BigInteger, nullable=False),
    Column("origin_key", BigInteger, nullable=False),
    Column("before_ms", BigInteger, nullable=False, index=True),
    Index("origin_claim_by_origin", "telemetry_data_id", "origin_key"),
)
# The last refused messages of a device, in a ring: number n stands in slot n % 100.
rejection = _table(
    "rejection",
    Column("device_id", Id, ForeignKey("device.id", ondelete="CASCADE"), primary_key=True),
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("protocol", String(10), nullable=False),
    Column("reason", String(60), nullable=False),
    Column("detail", String(500), nullable=False),
    Column("errors", Text, nullable=False),
    Column("payload", String(200), nullable=False),
)
gateway_lease = _table(
    "gateway_lease",
    Column("gateway_id", String(32), primary_key=True),
    Column("until_ms", BigInteger, nullable=False, index=True),
)
# What makes a device online: a connection as long as its gateway has a lease, or, without one, a time of its own.
device_connection = _table(
    "device_connection",
    Column("device_id", Id, ForeignKey("device.id", ondelete="CASCADE"), primary_key=True),
    Column("gateway_id", String(32), primary_key=True),
    Column("until_ms", BigInteger, index=True),
    Index("device_connection_by_gateway", "gateway_id"),
)
id_block = _table(
    "id_block",
    Column("name", String(20), primary_key=True),
    Column("next_id", BigInteger, nullable=False),
)
# Sessions of users that logged out; as long as a token of theirs could still be refreshed.
ended_session = _table(
    "ended_session",
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False, index=True),
)
registry_change = _table(
    "registry_change",
    Column("id", Id, primary_key=True),
    Column("device_id", BigInteger, nullable=False),
    Column("at_ms", BigInteger, nullable=False, index=True),
)
