"""The tables of rules' database."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from aemos_core.audit import audit_table
from aemos_core.database import TABLE_ARGS, Id
from aemos_core.outbox import OutboxTables
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy import UniqueConstraint as Unique
from sqlalchemy.dialects.mysql import LONGBLOB, MEDIUMTEXT
from sqlalchemy.schema import SchemaItem

from aemos_rules.domain import Watermark

metadata = MetaData()
outbox = OutboxTables(metadata)
audit = audit_table(metadata)

_LONG_TEXT = Text().with_variant(MEDIUMTEXT, "mysql", "mariadb")
_BYTES = LargeBinary().with_variant(LONGBLOB, "mysql", "mariadb")


ASSERTED = ("asserted_at_ms", "asserted_reading_id", "asserted_chain_id")
"""The columns of a watermark: event time, reading and chain of the assertion that a row stands at."""
watermark_of: Callable[[Any], Watermark] = attrgetter(*ASSERTED)


def asserted(mark: Watermark) -> dict[str, int]:
    """The columns of a watermark with their values."""
    return dict(zip(ASSERTED, mark, strict=True))


def _table(name: str, *columns: SchemaItem) -> Table:
    return Table(name, metadata, *columns, **TABLE_ARGS)


rule_chain = _table(
    "rule_chain",
    Column("id", Id, primary_key=True),
    Column("organization_id", BigInteger, nullable=False),
    Column("name", String(200), nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("version", Integer, nullable=False),
    Column("nodes", _LONG_TEXT, nullable=False),
    Column("connections", _LONG_TEXT),
    Column("schedule_enabled", Boolean, nullable=False, index=True),
    Column("cron_expression", String(100), nullable=False),
    Column("timezone", String(64), nullable=False),
    Column("interval_seconds", BigInteger, nullable=False),
    Column("interval_anchor_ms", BigInteger, nullable=False),
    Column("run_at_ms", BigInteger, nullable=False),
    Column("misfire_policy", String(10), nullable=False),
    Column("overlap_policy", String(10), nullable=False),
    Column("schedule_paused", Boolean, nullable=False),
    Column("suspended_at_ms", BigInteger, nullable=False),
    Column("suspension", String(500), nullable=False),
    Column("schedule_since_ms", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Index("rule_chain_by_organization", "organization_id", "id"),
)
# What each save of a chain made of it.
rule_chain_version = _table(
    "rule_chain_version",
    Column("rule_chain_id", Id, ForeignKey("rule_chain.id", ondelete="CASCADE"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("name", String(200), nullable=False),
    Column("nodes", _LONG_TEXT, nullable=False),
    Column("connections", _LONG_TEXT),
    Column("saved_at_ms", BigInteger, nullable=False),
    Column("user_id", BigInteger, nullable=False),
)
# The sensors that a chain's filters name: what the index in Redis is built from.
rule_chain_sensor = _table(
    "rule_chain_sensor",
    Column("sensor_uuid", String(64), primary_key=True),
    Column("rule_chain_id", Id, ForeignKey("rule_chain.id", ondelete="CASCADE"), primary_key=True),
)
# Which chains changed in the last hour: scheduler's copy follows it.
rule_chain_change = _table(
    "rule_chain_change",
    Column("id", Id, primary_key=True),
    Column("rule_chain_id", BigInteger, nullable=False),
    Column("at_ms", BigInteger, nullable=False, index=True),
)
# What nodes remember: the truth, written in the transaction of the effects that go with it.
node_memory = _table(
    "node_memory",
    Column("rule_chain_id", BigInteger, primary_key=True, autoincrement=False),
    Column("node", String(200), primary_key=True),
    Column("cell_key", String(64), primary_key=True),
    Column("value", _BYTES, nullable=False),
)
# Runs that go on later.
deadline = _table(
    "deadline",
    Column("rule_chain_id", BigInteger, primary_key=True, autoincrement=False),
    Column("node", String(200), primary_key=True),
    Column("cell_key", String(64), primary_key=True),
    Column("due_at_ms", BigInteger, nullable=False, index=True),
    Column("lane", Integer, nullable=False),
    Column("run", _BYTES, nullable=False),
)
# Which worker may trust its copy of a partition's memory.
memory_owner = _table(
    "memory_owner",
    Column("lane", Integer, primary_key=True, autoincrement=False),
    Column("owner", String(32), nullable=False),
)
device_state = _table(
    "device_state",
    Column("id", Id, primary_key=True),
    Column("organization_id", BigInteger, nullable=False),
    Column("device_id", BigInteger, nullable=False),
    Column("device_uuid", String(64), nullable=False, index=True),
    Column("name", String(200), nullable=False),
    Column("default_value", String(200), nullable=False),
    Column("value", String(200), nullable=False),
    Column("changed_at_ms", BigInteger),
    *(Column(name, BigInteger, nullable=False) for name in ASSERTED),
    Unique("device_id", "name", name="device_state_name"),
    Index("device_state_by_organization", "organization_id", "id"),
)
device_state_instance = _table(
    "device_state_instance",
    Column("id", Id, primary_key=True),
    Column("device_state_id", Id, ForeignKey("device_state.id", ondelete="CASCADE"), nullable=False),
    Column("value", String(200), nullable=False),
    Column("old_value", String(200), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("rule_chain_id", BigInteger, nullable=False),
    Column("data_stream_id", BigInteger, nullable=False),
    Column("chain_run_id", BigInteger, nullable=False),
    Column("user_id", BigInteger, nullable=False),
    Index("device_state_instance_by_state", "device_state_id", "id"),
)
# `latest` is 1 in the newest row of a device and type, null in the others: the unique rule allows one of the former.
alarm = _table(
    "alarm",
    Column("id", Id, primary_key=True),
    Column("organization_id", BigInteger, nullable=False),
    Column("device_id", BigInteger, nullable=False),
    Column("device_uuid", String(64), nullable=False),
    Column("type", String(100), nullable=False),
    Column("latest", Integer),
    Column("severity", String(10), nullable=False),
    Column("active", Boolean, nullable=False),
    Column("message", String(500), nullable=False),
    Column("raised_at_ms", BigInteger, nullable=False),
    Column("cleared_at_ms", BigInteger),
    Column("acknowledged_at_ms", BigInteger),
    Column("rule_chain_id", BigInteger, nullable=False),
    Column("data_stream_id", BigInteger, nullable=False),
    *(Column(name, BigInteger, nullable=False) for name in ASSERTED),
    Unique("device_id", "type", "latest", name="alarm_latest"),
    Index("alarm_by_organization", "organization_id", "active", "id"),
)
alarm_event = _table(
    "alarm_event",
    Column("id", Id, primary_key=True),
    Column("alarm_id", Id, ForeignKey("alarm.id", ondelete="CASCADE"), nullable=False),
    Column("type", String(20), nullable=False),
    Column("severity", String(10), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("rule_chain_id", BigInteger, nullable=False, default=0),
    Column("data_stream_id", BigInteger, nullable=False, default=0),
    Column("user_id", BigInteger, nullable=False, default=0),
    Index("alarm_event_by_alarm", "alarm_id", "id"),
)
# `job_key` is that of the job that made it: a job that comes twice makes one report.
report = _table(
    "report",
    Column("id", Id, primary_key=True),
    Column("organization_id", BigInteger, nullable=False),
    Column("rule_chain_id", BigInteger, nullable=False),
    Column("job_key", String(64), nullable=False),
    Column("title", String(200), nullable=False),
    Column("from_ms", BigInteger, nullable=False),
    Column("to_ms", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False, index=True),
    Column("html", _LONG_TEXT, nullable=False),
    Column("csv", _LONG_TEXT, nullable=False),
    Unique("job_key", name="report_job"),
    Index("report_by_organization", "organization_id", "id"),
)
# `detail` is JSON: {"nodes": [...], "effects": [...]}, as the contract has them.
chain_run = _table(
    "chain_run",
    Column("id", Id, primary_key=True),
    Column("rule_chain_id", Id, ForeignKey("rule_chain.id", ondelete="CASCADE"), nullable=False),
    Column("organization_id", BigInteger, nullable=False),
    Column("version", Integer, nullable=False),
    Column("trigger_kind", String(20), key="trigger", nullable=False),  # a word of SQL is no name of a column
    Column("data_stream_id", BigInteger, nullable=False),
    Column("device_uuid", String(64), nullable=False),
    Column("sensor_uuid", String(64), nullable=False),
    Column("outcome", String(20), nullable=False),
    Column("error", String(500), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("recorded_at_ms", BigInteger, nullable=False, index=True),
    Column("trace_id", String(32), nullable=False),
    Column("detail", _LONG_TEXT, nullable=False),
    Index("chain_run_by_chain", "rule_chain_id", "id"),
)
