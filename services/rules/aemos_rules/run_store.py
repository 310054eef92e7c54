"""Recorded runs in the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aemos_core.database import Database
from aemos_core.sweeping import delete_found
from aemos_core.times import now_ms
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_rules import tables as t
from aemos_rules.domain import RunIds

KEPT_MS = 7 * 24 * 60 * 60 * 1000
MOST_OF_A_CHAIN = 10_000
_AT_ONCE = 500
_BUSY_MS = 2 * 60 * 1000
_r = t.chain_run.c


async def record(connection: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> RunIds:
    """Adds runs, given by their columns. One of a chain that was deleted meanwhile raises EXISTS, as a broken foreign
    key does."""
    at, chains = now_ms(), {row["rule_chain_id"] for row in rows}
    values = [{**row, "recorded_at_ms": at} for row in rows]
    if len(values) == 1:
        created = await connection.execute(insert(t.chain_run).values(values[0]))
        run_id = int(created.inserted_primary_key[0])  # type: ignore[index]
        return {(rows[0]["rule_chain_id"], rows[0]["data_stream_id"], rows[0]["at_ms"]): run_id}
    await connection.execute(insert(t.chain_run), values)
    # Read back: not every database returns the ids of many rows that it takes at once.
    query = select(_r.rule_chain_id, _r.data_stream_id, _r.at_ms, _r.id)
    mine = query.where(_r.recorded_at_ms == at, _r.rule_chain_id.in_(sorted(chains))).order_by(_r.id)
    return {(chain, reading, at_ms): run for chain, reading, at_ms, run in (await connection.execute(mine)).all()}


async def known_chains(connection: AsyncConnection, chain_ids: Iterable[int]) -> set[int]:
    """Those of these chains that exist, held until the transaction ends."""
    query = select(t.rule_chain.c.id).where(t.rule_chain.c.id.in_(sorted(set(chain_ids))))
    return set((await connection.execute(query.with_for_update(read=True))).scalars())


async def thin_out(database: Database) -> int:
    """Deletes some of what chains that ran lately have beyond their 10,000; how many."""
    busy = select(_r.rule_chain_id).where(_r.recorded_at_ms >= now_ms() - _BUSY_MS).distinct().limit(_AT_ONCE)
    gone = 0
    async with database.write() as connection:
        for chain_id in list((await connection.execute(busy)).scalars()):
            of_chain = select(_r.id).where(_r.rule_chain_id == chain_id)
            newest = of_chain.order_by(_r.id.desc()).offset(MOST_OF_A_CHAIN - 1).limit(1)
            oldest_kept = (await connection.execute(newest)).scalar()
            if oldest_kept is not None:
                many = of_chain.where(_r.id < oldest_kept).order_by(_r.id).limit(_AT_ONCE)
                gone += await delete_found(connection, t.chain_run, many)
    return gone
