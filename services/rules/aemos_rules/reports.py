"""Reports as their job stores them, and how long they are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aemos_core.database import Database
from aemos_core.outbox import OutboxRows, Row
from aemos_core.sweeping import delete_found
from sqlalchemy import insert, select

from aemos_rules import tables

KEPT = 1_000
"""Reports of an organization: the oldest give way."""
AT_ONCE = 50
"""How many are deleted at a time: each may have megabytes."""
_c = tables.report.c


class Reports:
    """Reports in the database."""

    def __init__(self, database: Database, outbox: OutboxRows) -> None:
        self._database = database
        self._outbox = outbox

    async def is_made(self, job_key: str) -> bool:
        """Whether the job with this key has made its report."""
        async with self._database.read() as connection:
            return (await connection.execute(select(_c.id).where(_c.job_key == job_key))).first() is not None

    async def save(self, values: Mapping[str, Any], mails: Sequence[Row]) -> None:
        """Stores a report and announces its mails in one transaction; EXISTS when its job has done so before."""
        async with self._database.write() as connection:
            await connection.execute(insert(tables.report).values(**values))
            surplus = select(_c.id).where(_c.organization_id == values["organization_id"]).order_by(_c.id.desc())
            await delete_found(connection, tables.report, surplus.offset(KEPT).limit(AT_ONCE))
            rows = await self._outbox.add(connection, mails)
        self._outbox.committed(rows)
