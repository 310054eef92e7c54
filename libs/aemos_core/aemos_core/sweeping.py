"""What is kept for a time only goes in small steps, in the background."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import Column, Select, Table, delete, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_core.database import Database
from aemos_core.errors import AemosError
from aemos_core.times import now_ms
from aemos_core.waiting import wait

log = logging.getLogger("aemos.sweep")

Step = Callable[[], Awaitable[object]]
"""Does a little; true when there may be more to do."""


class Sweep:
    """A component: takes a step each so many seconds, and another at once after one that did something."""

    def __init__(self, seconds: float, step: Step, meanwhile: str) -> None:
        """`meanwhile` is how things are when a step fails, such as "reports stay"; the next is tried in its time."""
        self._seconds = seconds
        self._step = step
        self._meanwhile = meanwhile

    async def run(self, stop: asyncio.Event) -> None:
        """Sweeps until told to stop."""
        while not await wait(stop, self._seconds):
            try:
                while await self._step() and not stop.is_set():
                    pass
            except AemosError as error:
                log.warning("%s for now: %s", self._meanwhile, error.detail)


def kept_for(database: Database, at_ms: Column[Any], kept_ms: int, most: int = 1_000) -> Step:
    """The step that deletes some of a table's rows whose time was so long ago."""

    async def step() -> int:
        return await forget(database, at_ms, now_ms() - kept_ms, most)

    return step


async def forget(database: Database, at_ms: Column[Any], before_ms: int, most: int = 1_000) -> int:
    """Deletes so many at most of a table's rows from before; how many."""
    keys = select(*at_ms.table.primary_key).where(at_ms < before_ms).limit(most)
    async with database.write() as connection:
        return await delete_found(connection, at_ms.table, keys)


async def delete_found(connection: AsyncConnection, table: Table, keys: Select[Any]) -> int:
    """Deletes the rows whose primary keys a query finds; how many. Not a subquery: MySQL takes no LIMIT in one."""
    found = [tuple(row) for row in (await connection.execute(keys)).all()]
    if found:
        await connection.execute(delete(table).where(tuple_(*table.primary_key).in_(found)))
    return len(found)
