"""Runs that go on later: kept in a table, and put on the queue of their partition when they are due."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec
from aemos.v1 import job_pb2
from aemos_core.database import Database
from aemos_core.errors import AemosError
from aemos_core.jobs import RESUME_RUNS
from aemos_core.outbox import OutboxRows, Row
from aemos_core.times import now_ms
from aemos_core.waiting import wait
from sqlalchemy import delete, func, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_rules import tables as t
from aemos_rules.domain import Reading, RunIds
from aemos_rules.effects import Pending
from aemos_rules.run import Cell, Deadline

log = logging.getLogger("aemos.rules")

POLL_SECONDS = 5.0
"""Deadlines of workers that died are noticed so late at the most."""
_AT_ONCE = 500
_UNKNOWN = 2**63
_d = t.deadline.c
_KEY = tuple_(_d.rule_chain_id, _d.node, _d.cell_key)
_REPLACE = text(
    "REPLACE INTO deadline (rule_chain_id, node, cell_key, due_at_ms, lane, run) "
    "VALUES (:chain, :node, :key, :due, :lane, :run)"
)


_State: TypeAlias = tuple[Reading | None, dict[str, Any], int, int, int]
"""(reading, data, at_ms, depth, tries) of a Deadline."""


def message_of(deadline: Deadline) -> job_pb2.ResumedRun:
    """What goes on, as it is kept and sent."""
    cell, _, reading, data, at_ms, depth, _, tries = deadline
    return job_pb2.ResumedRun(
        rule_chain_id=cell.chain_id,
        node=cell.node,
        key=cell.key,
        due_at_ms=deadline.due_ms,
        partition=cell.partition,
        state=msgspec.msgpack.encode((reading, data, at_ms, depth, tries)),
    )


def deadline_of(message: job_pb2.ResumedRun) -> Deadline:
    """The reverse of message_of."""
    reading, data, at_ms, depth, tries = msgspec.msgpack.decode(message.state, type=_State)
    cell = Cell(message.partition, message.rule_chain_id, message.node, message.key)
    return Deadline(cell, message.due_at_ms, reading, data, at_ms, depth, tries=tries)


def _resumed(partition: int, run: bytes) -> Row:
    """The outbox row of one; batches join byte by byte."""
    runs = job_pb2.ResumedRuns(runs=[job_pb2.ResumedRun.FromString(run)])
    return Row(RESUME_RUNS.name, partition, runs.SerializeToString())


class Deadlines:
    """A component that fires what is due; `Kept` applies what will be.

    Any worker fires what any worker kept: taking the row and sending the run is one transaction, so it is sent once,
    and whoever is up first sends what came due while nobody was.
    """

    def __init__(self, database: Database, outbox: OutboxRows) -> None:
        self._database = database
        self._outbox = outbox
        self._hinted = asyncio.Event()
        self._next_ms = _UNKNOWN

    def hint(self, due_ms: int) -> None:
        """Something is due then."""
        if due_ms < self._next_ms:
            self._hinted.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Fires until told to stop."""
        while not stop.is_set():
            self._hinted.clear()
            self._next_ms = _UNKNOWN  # what is committed while the table is read may have been missed by it
            await wait(stop, await self._fire(), self._hinted)

    async def _fire(self) -> float:
        """Returns the seconds until there may be something to do."""
        try:
            async with self._database.read() as connection:
                due = (await connection.execute(select(func.min(_d.due_at_ms)))).scalar()
            now = now_ms()
            if due is not None and due <= now:
                await self._take(now)
                return 0.0
        except AemosError as error:
            log.warning("deadlines wait: %s", error.detail)
            return POLL_SECONDS
        self._next_ms = now + int(POLL_SECONDS * 1000) if due is None else due
        return min(POLL_SECONDS, (self._next_ms - now) / 1000)

    async def _take(self, now: int) -> None:
        query = select(t.deadline).where(_d.due_at_ms <= now).order_by(_d.due_at_ms).limit(_AT_ONCE).with_for_update()
        async with self._database.write() as connection:
            rows = (await connection.execute(query)).all()
            if not rows:
                return  # another worker was faster
            keys = [(row.rule_chain_id, row.node, row.cell_key) for row in rows]
            await connection.execute(delete(t.deadline).where(_KEY.in_(keys)))
            sent = await self._outbox.add(connection, [_resumed(row.lane, bytes(row.run)) for row in rows])
        self._outbox.committed(sent)


class Kept(Pending):
    """The deadlines that one job sets and takes back: the last of each cell counts."""

    def __init__(self, deadlines: Deadlines, effects: Sequence[Deadline]) -> None:
        self._deadlines = deadlines
        changed, now = {effect.cell: effect for effect in effects}.values(), now_ms()
        self._later = [each for each in changed if _fires_at(each) > now]
        self._over = [each for each in changed if _fires_at(each) <= now]

    async def write(self, connection: AsyncConnection, runs: RunIds) -> Sequence[Row]:
        """What is due already goes by the outbox at once; what was taken back (0) only goes."""
        if self._over:
            keys = [(cell.chain_id, cell.node, cell.key) for cell, *_ in self._over]
            await connection.execute(delete(t.deadline).where(_KEY.in_(keys)))
        if self._later:
            await connection.execute(_REPLACE, [self._row(deadline) for deadline in self._later])
        due = [each for each in self._over if _fires_at(each)]
        return [_resumed(each.cell.partition, message_of(each).SerializeToString()) for each in due]

    @staticmethod
    def _row(deadline: Deadline) -> dict[str, Any]:
        cell, run = deadline.cell, message_of(deadline).SerializeToString()
        names = {"chain": cell.chain_id, "node": cell.node, "key": cell.key}
        return {**names, "due": _fires_at(deadline), "lane": cell.partition, "run": run}

    async def settle(self) -> None:
        """Wakes whoever fires them."""
        for deadline in self._later:
            self._deadlines.hint(_fires_at(deadline))


def _fires_at(deadline: Deadline) -> int:
    return max(deadline.due_ms, deadline.put_off_ms)
