"""Recorded runs in the database."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aemos_core.database import Database
from aemos_core.errors import AemosError
from aemos_core.times import now_ms
from aemos_core.waiting import wait
from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_rules import tables as t
from aemos_rules.domain import RunIds

log = logging.getLogger("aemos.rules")

KEPT_MS = 7 * 24 * 60 * 60 * 1000
MOST_OF_A_CHAIN = 10_000
_AT_ONCE = 500
_SWEEP_SECONDS = 60.0
_BUSY_MS = 2 * 60 * 1000
_r = t.chain_run.c


async def record(connection: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> RunIds:
    """Adds runs, given by their columns. One of a chain that was deleted meanwhile raises EXISTS, as a broken foreign
    key does."""
    at, chains = now_ms(), {row["rule_chain_id"] for row in rows}
    await connection.execute(insert(t.chain_run), [{**row, "recorded_at_ms": at} for row in rows])
    # Read back: not every database returns the ids of many rows that it takes at once.
    query = select(_r.rule_chain_id, _r.data_stream_id, _r.at_ms, _r.id)
    mine = query.where(_r.recorded_at_ms == at, _r.rule_chain_id.in_(sorted(chains))).order_by(_r.id)
    return {(chain, reading, at_ms): run for chain, reading, at_ms, run in (await connection.execute(mine)).all()}


async def known_chains(connection: AsyncConnection, chain_ids: Iterable[int]) -> set[int]:
    """Those of these chains that exist, held until the transaction ends."""
    query = select(t.rule_chain.c.id).where(t.rule_chain.c.id.in_(sorted(set(chain_ids))))
    return set((await connection.execute(query.with_for_update(read=True))).scalars())


async def forget_old(connection: AsyncConnection, now: int) -> int:
    """Deletes some of the runs that are over a week old; how many."""
    query = select(_r.id).where(_r.recorded_at_ms < now - KEPT_MS).order_by(_r.recorded_at_ms).limit(_AT_ONCE)
    return await _delete(connection, query)


async def forget_many(connection: AsyncConnection, chain_id: int) -> int:
    """Deletes some of what a chain has beyond its 10,000; how many."""
    newest = select(_r.id).where(_r.rule_chain_id == chain_id).order_by(_r.id.desc())
    oldest_kept = (await connection.execute(newest.offset(MOST_OF_A_CHAIN - 1).limit(1))).scalar()
    if oldest_kept is None:
        return 0
    query = select(_r.id).where(_r.rule_chain_id == chain_id, _r.id < oldest_kept).order_by(_r.id).limit(_AT_ONCE)
    return await _delete(connection, query)


async def _delete(connection: AsyncConnection, query: Any) -> int:
    ids = list((await connection.execute(query)).scalars())
    if ids:
        await connection.execute(delete(t.chain_run).where(_r.id.in_(ids)))
    return len(ids)


class RunSweep:
    """A component: forgets runs over a week old, and what chains have beyond their 10,000, in small steps."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def run(self, stop: asyncio.Event) -> None:
        """Sweeps each minute."""
        while not await wait(stop, _SWEEP_SECONDS):
            try:
                while await self._sweep() and not stop.is_set():
                    pass
            except AemosError as error:
                log.warning("old runs stay for now: %s", error.detail)

    async def _sweep(self) -> int:
        async with self._database.write() as connection:
            gone = await forget_old(connection, now_ms())
            for chain_id in await busy_chains(connection, now_ms() - _BUSY_MS):
                gone += await forget_many(connection, chain_id)
        return gone


async def busy_chains(connection: AsyncConnection, since_ms: int) -> list[int]:
    """Chains with runs recorded since then."""
    query = select(_r.rule_chain_id).where(_r.recorded_at_ms >= since_ms).distinct().limit(_AT_ONCE)
    return list((await connection.execute(query)).scalars())
