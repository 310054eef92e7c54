"""Runs that changed something or failed, recorded in the transaction of what they did, and kept for a week; chains that
only fail are suspended, and loops are told."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

from aemos_core import telemetry
from aemos_core.announcements import outbox_row
from aemos_core.database import Database
from aemos_core.outbox import Row
from aemos_core.sweeping import delete_found
from aemos_core.times import now_ms
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_rules import chain_store
from aemos_rules import tables as t
from aemos_rules.alarms import AlarmAssertion
from aemos_rules.announcements import chain_looped, chain_suspended
from aemos_rules.chain_index import chains_changed
from aemos_rules.domain import Cause, RunIds, StateAssertion
from aemos_rules.engine import ERRORS_TO_SUSPEND, CompiledChain, RunResult
from aemos_rules.explain import explained
from aemos_rules.locking import locked
from aemos_rules.run import Deadline, Remembered, Start, World

KEPT_MS = 7 * 24 * 60 * 60 * 1000
MOST_OF_A_CHAIN = 10_000
MOST_A_SECOND = 50
_AT_ONCE = 500
_BUSY_MS = 2 * 60 * 1000
_r = t.chain_run.c
_MOST_ERROR = 500
_QUIET = frozenset((StateAssertion, AlarmAssertion, Remembered, Deadline))
"""Effects that may change nothing: the appliers know which did."""


class Ran(NamedTuple):
    """A run that said something or failed. `world` is as it was before."""

    chain: CompiledChain
    start: Start
    world: World
    result: RunResult

    @property
    def cause(self) -> Cause:
        """As the appliers name what caused a change."""
        reading = self.start.reading
        return self.chain.chain.id, reading.id if reading else 0, self.start.moment

    @property
    def causes(self) -> set[Cause]:
        """All that it may have caused. What it says after a deadline has that time, not its own."""
        if not self.start.node:
            return {self.cause}
        said = (effect for effect in self.result.effects if isinstance(effect, (StateAssertion, AlarmAssertion)))
        return {
            self.cause,
            *((chain_id, reading_id, at) for at, reading_id, chain_id in (one.watermark for one in said)),
        }

    @property
    def is_sure(self) -> bool:
        """It is to be recorded whatever the appliers say."""
        return bool(self.result.error) or not _QUIET.issuperset(map(type, self.result.effects))


async def record(connection: AsyncConnection, ran: Sequence[Ran], causes: Set[Cause]) -> tuple[RunIds, list[Row]]:
    """Records those that cause something; returns their ids, and what is to be told of their chains. Above 50 a second
    of one chain they are only counted."""
    chosen = [run for run in ran if run.is_sure or run.cause in causes or (run.start.node and causes & run.causes)]
    kept = [run for run in chosen if _may_record(run)]
    runs: dict[Cause, int] = {}
    if kept:
        chains = {run.chain.chain.id for run in kept}
        known = {row.id for row in await locked(connection, t.rule_chain, chains, "id", shared=True)}
        rows = [_row(run) for run in kept if run.chain.chain.id in known]
        if rows:
            runs = await _stored(connection, rows)
    for run in kept:
        if run.start.node and (run_id := runs.get(run.cause)):
            runs |= dict.fromkeys(run.causes, run_id)
    failed = {run.chain.chain.id: run for run in chosen if run.result.error}
    looped = {run.chain.chain.id: run for run in chosen if run.result.outcome == "loop"}
    told = [outbox_row([chain_looped(run.chain.chain, _error(run)) for run in looped.values()])] if looped else []
    return runs, [*told, *await _suspend(connection, failed)]


def _may_record(run: Ran) -> bool:
    activity, second = run.chain.activity, int(time.monotonic())
    if activity.second != second:
        activity.second, activity.second_count = second, 0
    activity.second_count += 1
    if activity.second_count > MOST_A_SECOND:
        activity.not_recorded += 1
        return False
    return True


async def _suspend(connection: AsyncConnection, failed: dict[int, Ran]) -> list[Row]:
    rows: list[Row] = []
    for chain_id, run in failed.items():
        if len(run.chain.activity.failing) < ERRORS_TO_SUSPEND:
            continue
        error = _error(run)
        if await chain_store.suspend(connection, chain_id, run.chain.chain.version, error):
            rows.append(outbox_row([chain_suspended(run.chain.chain, error)]))
            rows.append(chains_changed(await chain_store.sensors_of(connection, chain_id)))
    return rows


def _error(run: Ran) -> str:
    return f"node {run.result.node_name!r}: {run.result.error}"[:_MOST_ERROR]


def _row(run: Ran) -> dict[str, Any]:
    chain, start, reading = run.chain.chain, run.start, run.start.reading
    seen = explained(run.chain, start, run.world)
    return {
        **seen.facts,
        "organization_id": chain.organization_id,
        "error": seen.result.error[:_MOST_ERROR],
        "at_ms": start.moment,
        "trace_id": telemetry.trace_id_of(reading.trace_context) if reading else "",
        "detail": json.dumps(seen.detail),
    }


async def _stored(connection: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> dict[Cause, int]:
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
