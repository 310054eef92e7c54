"""The scheduler's tables: each instant at which a chain was fired, how its run ended, and the outbox."""

from __future__ import annotations

from aemos_core.database import TABLE_ARGS
from aemos_core.outbox import OutboxTables
from sqlalchemy import BigInteger, Boolean, Column, Index, LargeBinary, MetaData, String, Table


def _key() -> list[Column[int]]:
    return [
        Column("rule_chain_id", BigInteger, primary_key=True, autoincrement=False),
        Column("planned_at_ms", BigInteger, primary_key=True, autoincrement=False),
    ]


metadata = MetaData()
OUTBOX = OutboxTables(metadata)
# `claim` is the number of the transaction that claimed the instant: of many rows inserted at once the database does not
# say which were there already.
firing = Table(
    "firing",
    metadata,
    *_key(),
    Column("organization_id", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("claim", BigInteger, nullable=False),
    Column("manual", Boolean, nullable=False),
    Index("firing_by_creation", "created_at_ms"),
    **TABLE_ARGS,
)
# A run that is over. A table of its own: ends come many at once, and adding them is one statement.
firing_end = Table(
    "firing_end",
    metadata,
    *_key(),
    Column("started_at_ms", BigInteger, nullable=False),
    Column("finished_at_ms", BigInteger, nullable=False),
    Column("outcome", String(10), nullable=False),
    Column("run_id", String(64), nullable=False),
    Column("trace_id", String(32), nullable=False),
    Column("error", String(200), nullable=False),
    **TABLE_ARGS,
)
# A run that is not over, of a chain whose runs must not overlap. `run` is the job's payload of one that is queued.
firing_open = Table(
    "firing_open",
    metadata,
    *_key(),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("queued", Boolean, nullable=False),
    Column("run", LargeBinary(1024), nullable=False),
    **TABLE_ARGS,
)
