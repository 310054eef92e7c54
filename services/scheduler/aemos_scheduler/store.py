"""The scheduler's tables: each instant at which a chain was fired, and the outbox."""

from __future__ import annotations

from collections.abc import Sequence

from aemos_core.database import TABLE_ARGS, Database
from aemos_core.jobs import RUN_CHAINS
from aemos_core.outbox import OutboxRows, OutboxTables, Row
from aemos_core.paging import Page
from aemos_core.times import now_ms
from sqlalchemy import BigInteger, Column, MetaData, Table, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_scheduler.codec import job_payload
from aemos_scheduler.domain import Instant, partition_of

metadata = MetaData()
OUTBOX = OutboxTables(metadata)
firing = Table(
    "firing",
    metadata,
    Column("rule_chain_id", BigInteger, primary_key=True, autoincrement=False),
    Column("planned_at_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("organization_id", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    **TABLE_ARGS,
)
_CLAIM = insert(firing).prefix_with("OR IGNORE", dialect="sqlite").prefix_with("IGNORE", dialect="mysql")


class FiringStore:
    """Firings: the primary key is what makes an instant one process' own."""

    def __init__(self, database: Database, outbox: OutboxRows, partitions: int) -> None:
        self._database = database
        self._outbox = outbox
        self._partitions = partitions

    async def fire(self, instants: Sequence[Instant]) -> list[Instant]:
        """Claims instants and announces their runs in one transaction; returns those nobody else had claimed.

        Raises UNAVAILABLE: then try again, what was claimed after all is not claimed twice.
        """
        async with self._database.write() as connection:
            # In one order for all, or two processes could wait for each other's rows.
            ordered = sorted(instants, key=lambda i: (i.schedule.rule_chain_id, i.planned_at_ms))
            claimed = [instant for instant in ordered if await _claim(connection, instant)]
            rows = await self._outbox.add(connection, [self._row(instant) for instant in claimed])
        self._outbox.committed(rows)
        return claimed

    async def list_firings(self, organization_id: int, rule_chain_id: int, page: Page) -> tuple[list[int], str]:
        """When a chain of an organization was fired (ms since 1970 UTC), newest first, and the next page's token."""
        query = (
            select(firing.c.planned_at_ms)
            .where(firing.c.rule_chain_id == rule_chain_id, firing.c.organization_id == organization_id)
            .order_by(firing.c.planned_at_ms.desc())
            .limit(page.limit + 1)
        )
        if page.after:
            query = query.where(firing.c.planned_at_ms < page.after)
        async with self._database.read() as connection:
            found = (await connection.execute(query)).all()
        rows, token = page.cut(found, "planned_at_ms")
        return [row.planned_at_ms for row in rows], token

    def _row(self, instant: Instant) -> Row:
        partition = partition_of(instant.schedule.rule_chain_id, self._partitions)
        return Row(RUN_CHAINS.name, partition, job_payload(instant))


async def _claim(connection: AsyncConnection, instant: Instant) -> bool:
    # Row by row: of many rows inserted at once the database does not say which were ignored.
    values = {
        "rule_chain_id": instant.schedule.rule_chain_id,
        "planned_at_ms": instant.planned_at_ms,
        "organization_id": instant.schedule.organization_id,
        "created_at_ms": now_ms(),
    }
    return (await connection.execute(_CLAIM, values)).rowcount == 1
