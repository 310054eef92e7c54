"""Readings in the database: one transaction for a batch, and pages of one variable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aemos_core.database import Database
from aemos_core.outbox import OutboxRows, Row
from sqlalchemy import Row as SqlRow
from sqlalchemy import insert, select, tuple_, update

from aemos_ingest import tables as t

_BLOCK = 100_000
_IDS = "data_stream"
_INSERT_AT_ONCE = 1_000


class ReadingIds:
    """Ids for readings, known before the insert; blocks are reserved in the database, so no two processes share one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._next = self._end = 0

    async def take(self, count: int) -> int:
        """The first of `count` consecutive ids."""
        if self._next + count > self._end:
            self._next = await self._reserve(max(count, _BLOCK))
            self._end = self._next + max(count, _BLOCK)
        first = self._next
        self._next += count
        return first

    async def _reserve(self, count: int) -> int:
        block = t.id_block
        async with self._database.write() as connection:
            claim = update(block).where(block.c.name == _IDS).values(next_id=block.c.next_id + count)
            if (await connection.execute(claim)).rowcount == 0:
                await connection.execute(insert(block).values(name=_IDS, next_id=1 + count))
                return 1
            found = await connection.execute(select(block.c.next_id).where(block.c.name == _IDS))
            return int(found.scalar_one()) - count


async def store(
    database: Database, outbox: OutboxRows, readings: Sequence[dict[str, Any]], announcements: Sequence[Row]
) -> list[Row]:
    """Writes readings and what announces them in one transaction; durable when it returns."""
    async with database.write() as connection:
        for start in range(0, len(readings), _INSERT_AT_ONCE):
            await connection.execute(insert(t.data_stream), readings[start : start + _INSERT_AT_ONCE])
        return await outbox.add(connection, announcements)


async def page(
    database: Database, variable_id: int, bounds: tuple[int, int], after: tuple[int, int], limit: int
) -> Sequence[SqlRow[Any]]:
    """At most limit + 1 readings with bounds[0] <= received_at_ms < bounds[1] behind `after`, oldest first."""
    c = t.data_stream.c
    query = (
        select(t.data_stream)
        .where(c.telemetry_data_id == variable_id, c.received_at_ms >= bounds[0], c.received_at_ms < bounds[1])
        .where(tuple_(c.received_at_ms, c.id) > after)
        .order_by(c.received_at_ms, c.id)
        .limit(limit + 1)
    )
    async with database.read() as connection:
        return (await connection.execute(query)).all()
