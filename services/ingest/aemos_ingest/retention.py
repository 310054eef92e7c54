"""Deletes what is old: readings that their organization keeps no longer, or whose variable is gone; and what tells
repetitions and changes of the registry for a time only."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Protocol

from aemos_core.database import Database
from aemos_core.errors import AemosError
from aemos_core.times import now_ms
from aemos_core.waiting import wait
from sqlalchemy import ColumnElement, and_, delete, func, or_, select

from aemos_ingest import tables as t
from aemos_ingest.history_store import END_OF_TIME
from aemos_ingest.identity_api import REFRESH_SECONDS
from aemos_ingest.registry_store import CHANGES_KEPT_MS
from aemos_ingest.repeats import KEPT_MS, REPEATED_WITHIN_MS

log = logging.getLogger("aemos.ingest")

DAY_MS = 86_400_000
_ROWS = 1_000
_SHARE, _MOST_SHARE = 0.05, 0.5
"""How much of the time a statement of ours may be under way: at first, 4,000 rows/s on a small machine; and when rounds
do not come to their end, because more is stored than that."""
_ROUND_SECONDS = 600.0
_STANDBY_SECONDS = 2.0
KEPT = (
    (t.reading_message.c.at_ms, KEPT_MS),
    (t.origin_claim.c.before_ms, REPEATED_WITHIN_MS),
    (t.registry_change.c.at_ms, CHANGES_KEPT_MS),
    (t.ended_session.c.at_ms, REFRESH_SECONDS * 1_000),
)
"""What is kept for a time only, beside readings."""
_c = t.data_stream.c


def share_after(seconds: float, share: float = _SHARE) -> float:
    """How much of the time steps may take in a round that has lasted for so long: twice as much every ten minutes."""
    return min(share * 2 ** min(seconds // _ROUND_SECONDS, 10), max(share, _MOST_SHARE))


class Lease(Protocol):
    """Says which one of the replicas deletes (PartitionLeases with one partition)."""

    def holds(self, partition: int) -> bool:
        """Whether this process does, now."""


class Retention:
    """A component: goes from variable to variable, some rows at a time, and rests 19 times as long as each step took;
    less and less in a round of over ten minutes.

    It keeps no position: a step that is done stays done, and what is left is found again.
    """

    def __init__(self, database: Database, lease: Lease, share: float = _SHARE) -> None:
        self._database = database
        self._lease = lease
        self._share = share
        self._round_began = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """A round over all variables, then ten minutes of nothing; never while another process does it."""
        while not stop.is_set():
            try:
                done = await self.round(stop)
            except AemosError as error:
                log.warning("old readings stay for now: %s", error.detail)
                done = True
            await wait(stop, _ROUND_SECONDS if done else _STANDBY_SECONDS)

    async def round(self, stop: asyncio.Event) -> bool:
        """Deletes all that is too old; whether it came to the end with the lease in its hands."""
        variable_id, deleted = 0, 0
        self._round_began = time.monotonic()
        while self._lease.holds(0) and not stop.is_set():
            began = time.monotonic()
            found = await self._next(variable_id)
            if found is None:
                if deleted:
                    log.info("retention deleted %d readings", deleted)
                return True
            variable_id, before_ms = found
            await self._rest(began, stop)
            deleted += await self._clear(variable_id, before_ms, stop)
        return False

    async def _next(self, after: int) -> tuple[int, int] | None:
        """The next variable that has readings, and the time before which they go; None behind the last."""
        v = t.telemetry_data.c
        first = select(func.min(_c.telemetry_data_id)).where(_c.telemetry_data_id > after)
        kept = select(t.organization.c.retention_days).join(t.telemetry_data, v.organization_id == t.organization.c.id)
        async with self._database.read() as connection:
            variable_id = (await connection.execute(first)).scalar_one()
            if variable_id is None:
                return None
            days = (await connection.execute(kept.where(v.id == variable_id))).scalar()
        if days is None:  # a variable is made before its first reading: this one is gone
            return variable_id, END_OF_TIME
        return variable_id, now_ms() - days * DAY_MS if days else 0

    async def _clear(self, variable_id: int, before_ms: int, stop: asyncio.Event) -> int:
        deleted, more = 0, before_ms > 0
        while more and self._lease.holds(0) and not stop.is_set():
            began = time.monotonic()
            count = await self._step(variable_id, before_ms)
            deleted, more = deleted + count, count >= _ROWS
            await self._rest(began, stop)
        return deleted

    async def _rest(self, began: float, stop: asyncio.Event) -> None:
        """After a step, so that steps have their share of the time."""
        now = time.monotonic()
        await wait(stop, (now - began) * (1 / share_after(now - self._round_began, self._share) - 1))

    async def _step(self, variable_id: int, before_ms: int) -> int:
        """Deletes at most `_ROWS` of the oldest; how many. Not every database knows DELETE with a limit."""
        old = and_(_c.telemetry_data_id == variable_id, _c.received_at_ms < before_ms)
        last = select(_c.received_at_ms, _c.id).where(old).order_by(_c.received_at_ms, _c.id)
        async with self._database.read() as connection:
            end = (await connection.execute(last.offset(_ROWS - 1).limit(1))).first()
        up_to: ColumnElement[bool] = old
        if end is not None:
            ms = end.received_at_ms
            up_to = and_(old, _c.received_at_ms <= ms, or_(_c.received_at_ms < ms, _c.id <= end.id))
        async with self._database.write() as connection:
            return (await connection.execute(delete(t.data_stream).where(up_to))).rowcount
