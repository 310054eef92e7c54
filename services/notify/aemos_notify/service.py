"""What was announced: read back from the notification log and the ledger, and forgotten after a month."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

from aemos_core.database import Database
from aemos_core.errors import AemosError
from aemos_core.notification_log import BEGINNING, Logged, LogId, entries
from aemos_core.redis_link import RedisClient
from aemos_core.times import now_ms
from aemos_core.waiting import wait

from aemos_notify import store
from aemos_notify import subscription_store as subscriptions

log = logging.getLogger("aemos.notify")

KEPT_MS = 30 * 24 * 60 * 60 * 1000
"""The ledger keeps notifications so long."""
_ENTRIES_AT_ONCE = 500
_SWEEP_SECONDS = 15 * 60.0


class LedgerSweep:
    """A component: removes what the ledger has kept long enough, also of organizations that fell silent."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def run(self, stop: asyncio.Event) -> None:
        """Sweeps every 15 minutes."""
        while not await wait(stop, _SWEEP_SECONDS):
            try:
                await self.sweep(now_ms() - KEPT_MS, stop)
            except AemosError as error:
                log.warning("the ledger keeps what is old: %s", error.detail)

    async def sweep(self, before_ms: int, stop: asyncio.Event) -> None:
        """Removes what is older, a little at a time."""
        async with self._database.read() as connection:
            organizations = await store.organizations(connection)
        for organization_id in organizations:
            while not stop.is_set() and await self.forget(organization_id, before_ms):
                pass

    async def forget(self, organization_id: int, before_ms: int) -> bool:
        """Removes some of what is older, with its deliveries: whether there may be more."""
        async with self._database.write() as connection:
            more_entries = await store.forget(connection, organization_id, before_ms)
            return await subscriptions.forget(connection, organization_id, before_ms) or more_entries


class History:
    """What was announced, newest first: from the log, and what it no longer has, from the ledger."""

    def __init__(self, database: Database, redis: RedisClient) -> None:
        self._database = database
        self._redis = redis

    async def backwards(self, organization_id: int, after: LogId, upto: LogId) -> AsyncIterator[Sequence[Logged]]:
        """Pages of what lies behind `after`, up to `upto`, newest first. UNAVAILABLE when Redis does not answer."""
        read, is_log = self._from_log, True
        while upto > after:
            page = await read(organization_id, after, upto)
            yield page
            if page:
                upto = page[-1].id.before()
            if len(page) < _ENTRIES_AT_ONCE:
                if not is_log or await entries(self._redis, organization_id, BEGINNING, after, 1):
                    return  # it goes back as far as is asked
                read, is_log = self._from_ledger, False

    async def _from_log(self, organization_id: int, after: LogId, upto: LogId) -> Sequence[Logged]:
        return await entries(self._redis, organization_id, after, upto, _ENTRIES_AT_ONCE, newest_first=True)

    async def _from_ledger(self, organization_id: int, after: LogId, upto: LogId) -> Sequence[Logged]:
        async with self._database.read() as connection:
            return await store.backwards(connection, organization_id, after, upto, _ENTRIES_AT_ONCE)
