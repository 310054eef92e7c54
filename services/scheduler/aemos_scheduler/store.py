"""Firings in the database: instants claimed, runs that must not overlap, and how they ended."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from aemos.v1.schedule_pb2 import FiringEnd
from aemos_core.database import Database
from aemos_core.identity import caller
from aemos_core.jobs import RUN_CHAINS
from aemos_core.outbox import OutboxRows
from aemos_core.outbox import Row as OutboxRow
from aemos_core.paging import Page
from aemos_core.records import AnyRow, listed
from aemos_core.times import now_ms
from sqlalchemy import Insert, String, Table, and_, bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_scheduler.codec import end_without_run, job_payload
from aemos_scheduler.domain import LOST_MS, Instant, by_overlap, partition_of
from aemos_scheduler.tables import firing, firing_end, firing_open

KEPT = 1_000
KEPT_MS = 90 * 24 * 60 * 60 * 1000
_AT_ONCE = 500
Key = tuple[int, int]
_key: Callable[[Any], Key] = attrgetter("rule_chain_id", "planned_at_ms")
"""What names an instant, its row and its end."""


def _unless_there(table: Table) -> Insert:
    return insert(table).prefix_with("OR IGNORE", dialect="sqlite").prefix_with("IGNORE", dialect="mysql")


_CLAIM, _END = _unless_there(firing), _unless_there(firing_end)


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
            claimed = await _claim(connection, sorted(instants, key=_key))
            guarded = {i.rule_chain_id for i in claimed if i.schedule.overlap != "allow"}
            unfinished = Counter(row.rule_chain_id for row in await _open(connection, guarded))
            runs, queued, skipped = by_overlap(claimed, unfinished)
            opened = [_open_row(i, i in queued) for i in (*runs, *queued) if i.schedule.overlap != "allow"]
            await _insert(connection, insert(firing_open), opened)
            await _end(connection, [end_without_run(i, "skipped") for i in skipped])
            jobs = self._jobs((i.rule_chain_id, job_payload(i)) for i in runs)
            rows = await self._outbox.add(connection, jobs)
        self._outbox.committed(rows)
        return claimed

    async def finish(self, ends: Sequence[FiringEnd]) -> None:
        """Stores ends, the first of each run, and lets the runs go that waited for them."""
        async with self._database.write() as connection:
            await _end(connection, ends)
            released = await _release(connection, set(map(_key, ends)))
            rows = await self._outbox.add(connection, self._jobs((row.rule_chain_id, row.run) for row in released))
        self._outbox.committed(rows)

    async def last_fired(self, chains: Iterable[int]) -> dict[int, int]:
        """The latest instant of each chain that was fired ever."""
        c = firing.c
        query = select(c.rule_chain_id, func.max(c.planned_at_ms)).where(c.rule_chain_id.in_(list(chains)))
        async with self._database.read() as connection:
            found = await connection.execute(query.group_by(c.rule_chain_id))
            return {chain: int(at) for chain, at in found.all()}

    async def list_firings(self, rule_chain_id: int, page: Page) -> tuple[Sequence[AnyRow], str]:
        """A chain's firings with their ends, newest first, and the next page's token."""
        c, end, waits = firing.c, firing_end, firing_open
        query = (
            select(firing, waits.c.queued, *(column for column in end.c if not column.primary_key))
            .outerjoin(end, _same(firing, end))
            .outerjoin(waits, _same(firing, waits))
            .where(c.rule_chain_id == rule_chain_id, c.organization_id == caller().organization_id)
        )
        async with self._database.read() as connection:
            return await listed(connection, query, c.planned_at_ms, page, newest_first=True)

    async def lost(self) -> Sequence[AnyRow]:
        """Some runs that hold up others and of which nothing was heard for an hour."""
        c = firing_open.c
        query = select(c.rule_chain_id, c.planned_at_ms).where(~c.queued, c.created_at_ms < now_ms() - LOST_MS)
        async with self._database.read() as connection:
            return (await connection.execute(query.limit(_AT_ONCE))).all()

    async def prune(self, rule_chain_id: int) -> None:
        """Forgets all but the newest firings of a chain."""
        planned = firing.c.planned_at_ms
        oldest = select(planned).where(firing.c.rule_chain_id == rule_chain_id).order_by(planned.desc())
        async with self._database.write() as connection:
            limit = (await connection.execute(oldest.offset(KEPT).limit(1))).scalar()
            if limit is not None:
                for table in (firing_end, firing):
                    c = table.c
                    await connection.execute(
                        delete(table).where(c.rule_chain_id == rule_chain_id, c.planned_at_ms <= limit)
                    )

    async def expire(self) -> None:
        """Forgets some of what is older than 90 days."""
        c = firing.c
        query = select(c.rule_chain_id, c.planned_at_ms).where(c.created_at_ms < now_ms() - KEPT_MS).limit(_AT_ONCE)
        async with self._database.write() as connection:
            old = (await connection.execute(query)).all()
            for table in (firing_end, firing):
                await _by_key(connection, delete(table), table, old)

    def _jobs(self, runs: Iterable[tuple[int, bytes]]) -> list[OutboxRow]:
        """One row for each partition: payloads join byte by byte."""
        payloads: dict[int, list[bytes]] = {}
        for rule_chain_id, payload in runs:
            payloads.setdefault(partition_of(rule_chain_id, self._partitions), []).append(payload)
        return [OutboxRow(RUN_CHAINS.name, p, b"".join(found), len(found)) for p, found in payloads.items()]


async def _claim(connection: AsyncConnection, instants: Sequence[Instant]) -> list[Instant]:
    claim, now = random.getrandbits(63), now_ms()
    rows = [
        {
            "rule_chain_id": instant.rule_chain_id,
            "planned_at_ms": instant.planned_at_ms,
            "organization_id": instant.schedule.organization_id,
            "created_at_ms": now,
            "claim": claim,
            "manual": instant.manual,
        }
        for instant in instants
    ]
    inserted = (await connection.execute(_CLAIM, rows)).rowcount
    if inserted in (0, len(rows)):
        return list(instants) if inserted else []
    c, planned = firing.c, [instant.planned_at_ms for instant in instants]
    mine = select(c.rule_chain_id, c.planned_at_ms).where(
        c.rule_chain_id.in_({instant.rule_chain_id for instant in instants}),
        c.planned_at_ms.between(min(planned), max(planned)),
        c.claim == claim,
    )
    keys = set(map(_key, await connection.execute(mine)))
    return [instant for instant in instants if _key(instant) in keys]


async def _open(connection: AsyncConnection, chains: Iterable[int]) -> Sequence[AnyRow]:
    """Runs of these chains that are not over, locked: nobody ends one of them before this transaction does."""
    c = firing_open.c
    query = select(firing_open).where(c.rule_chain_id.in_(sorted(chains))).order_by(c.rule_chain_id, c.planned_at_ms)
    return (await connection.execute(query.with_for_update())).all() if chains else ()


async def _release(connection: AsyncConnection, ended: set[Key]) -> list[AnyRow]:
    """Takes ended runs out of those that are not over; of each of their chains the next that waits is to run now."""
    rows = await _open(connection, {chain for chain, _ in ended})
    over = [row for row in rows if _key(row) in ended]
    left = [row for row in rows if _key(row) not in ended]
    if not over:
        return []
    await _by_key(connection, delete(firing_open), firing_open, over)
    first = {row.rule_chain_id: row for row in reversed(left)}
    running = {row.rule_chain_id for row in left if not row.queued}
    released = [row for chain, row in first.items() if chain not in running]
    await _by_key(connection, update(firing_open).values(queued=False, created_at_ms=now_ms()), firing_open, released)
    return released


async def _by_key(connection: AsyncConnection, statement: Any, table: Table, rows: Sequence[AnyRow]) -> None:
    """Deletes or updates the rows of these keys, in one round."""
    by_key = and_(table.c.rule_chain_id == bindparam("chain"), table.c.planned_at_ms == bindparam("at"))
    if rows:
        keys = [{"chain": row.rule_chain_id, "at": row.planned_at_ms} for row in rows]
        await connection.execute(statement.where(by_key), keys)


async def _end(connection: AsyncConnection, ends: Sequence[FiringEnd]) -> None:
    """Stores ends, in one order for all; texts are cut to what their columns hold."""
    texts = {column.name: column.type.length for column in firing_end.c if isinstance(column.type, String)}
    values = ({column.name: getattr(end, column.name) for column in firing_end.c} for end in sorted(ends, key=_key))
    rows = [row | {name: row[name][:longest] for name, longest in texts.items()} for row in values]
    await _insert(connection, _END, rows)


async def _insert(connection: AsyncConnection, statement: Insert, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        await connection.execute(statement, rows)


def _open_row(instant: Instant, queued: bool) -> dict[str, Any]:
    key = {"rule_chain_id": instant.rule_chain_id, "planned_at_ms": instant.planned_at_ms}
    return key | {"created_at_ms": now_ms(), "queued": queued, "run": job_payload(instant)}


def _same(one: Table, other: Table) -> Any:
    return and_(one.c.rule_chain_id == other.c.rule_chain_id, one.c.planned_at_ms == other.c.planned_at_ms)
