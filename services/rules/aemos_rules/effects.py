"""What runs say, carried out: all effects of a job in one transaction, announced with it.

A new effect is its type, beside the node that makes it, and a line in the registry (`appliers.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from aemos_core.database import Database
from aemos_core.outbox import OutboxRows, Row
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_rules.domain import Cause, RunIds
from aemos_rules.run_records import Ran, record


class Pending:
    """What is about to be done for the effects of one type that one job has. Doing it again does nothing."""

    writes = True
    """After `look`: whether there is something to store."""
    causes: Collection[Cause] = ()
    """After `look`: the runs whose effects change something that could also stay as it is."""

    async def prepare(self) -> None:
        """Asks what it needs to know beside the database, before the transaction."""

    async def look(self, connection: AsyncConnection) -> None:
        """Looks at what there is, and locks it."""

    async def write(self, connection: AsyncConnection, runs: RunIds) -> Sequence[Row]:
        """Stores it; returns what is to be sent after the commit."""
        raise NotImplementedError

    async def settle(self) -> None:
        """Does what follows, after the commit if there was one."""


Applier: TypeAlias = Callable[[Sequence[Any]], Pending]
"""Takes effects of one type, in the order in which runs made them."""


class Effects:
    """Applies the effects of a job. Doing it again does nothing."""

    def __init__(self, database: Database, outbox: OutboxRows, appliers: Mapping[type[Any], Applier]) -> None:
        self._database = database
        self._outbox = outbox
        self._appliers = appliers

    async def apply(self, said: Iterable[Any]) -> None:
        """Runs with their effects, and effects of none. In one transaction, which writes only when something changes;
        in the order of the registry."""
        ran, by_type = _by_type(said)
        pending = [applier(by_type.pop(kind)) for kind, applier in self._appliers.items() if kind in by_type]
        if by_type:
            raise TypeError(f"nobody applies {', '.join(kind.__name__ for kind in by_type)}")
        for each in pending:
            await each.prepare()
        failed = any(run.result.error for run in ran)  # what else is sure to be recorded has effects that write
        if pending or failed:
            async with self._database.write() as connection:
                for each in pending:
                    await each.look(connection)
                writing = [each for each in pending if each.writes]
                rows = await self._store(connection, writing, ran) if writing or failed else []
            self._outbox.committed(rows)
        for each in pending:
            await each.settle()

    async def _store(self, connection: AsyncConnection, writing: Sequence[Pending], ran: Sequence[Ran]) -> list[Row]:
        runs, rows = await record(connection, ran, {c for each in writing for c in each.causes})
        for each in writing:
            rows += await each.write(connection, runs)
        return await self._outbox.add(connection, rows)


def _by_type(said: Iterable[Any]) -> tuple[list[Ran], dict[type[Any], list[Any]]]:
    ran: list[Ran] = []
    by_type: dict[type[Any], list[Any]] = {}
    for one in said:
        if type(one) is Ran:
            ran.append(one)
        for effect in one.result.effects if type(one) is Ran else (one,):
            by_type.setdefault(type(effect), []).append(effect)
    return ran, by_type
