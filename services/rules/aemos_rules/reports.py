"""Reports as their job stores them, and how long they are kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from aemos_core.database import Database
from aemos_core.errors import AemosError
from aemos_core.outbox import OutboxRows, Row
from aemos_core.times import now_ms
from aemos_core.waiting import wait
from sqlalchemy import delete, insert, select

from aemos_rules import tables

log = logging.getLogger("aemos.rules")

KEPT = 1_000
"""Reports of an organization: the oldest give way."""
_TIDY_SECONDS = 60.0
_AT_ONCE = 50
_c = tables.report.c


class Reports:
    """A component: keeps reports until they expire."""

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
            old = list((await connection.execute(surplus.offset(KEPT).limit(_AT_ONCE))).scalars())
            await connection.execute(delete(tables.report).where(_c.id.in_(old)))
            rows = await self._outbox.add(connection, mails)
        self._outbox.committed(rows)

    async def run(self, stop: asyncio.Event) -> None:
        """Deletes what has expired, a little at a time, until told to stop."""
        while not await wait(stop, _TIDY_SECONDS):
            try:
                await self.expire(now_ms())
            except AemosError as error:
                log.warning("reports stay for now: %s", error.detail)

    async def expire(self, now: int) -> None:
        """Deletes some of the reports whose time is over."""
        async with self._database.write() as connection:
            over = select(_c.id).where(_c.expires_at_ms < now).limit(_AT_ONCE)
            old = list((await connection.execute(over)).scalars())
            if old:
                await connection.execute(delete(tables.report).where(_c.id.in_(old)))
