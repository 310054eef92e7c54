"""The ledger: copied from the notification log, read by page."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from aemos_core.database import Database
from aemos_core.errors import AemosError, unavailable
from aemos_core.names import notification_log
from aemos_core.notification_log import Logged, LogId, logged
from aemos_core.paging import Page
from aemos_core.redis_link import RedisClient
from aemos_core.times import now_ms
from aemos_core.waiting import wait
from redis.exceptions import RedisError

from aemos_notify import codec, store
from aemos_notify import subscription_store as subscriptions
from aemos_notify.dispatch import Dispatcher
from aemos_notify.domain import Entry, Query

log = logging.getLogger("aemos.notify")

KEPT_MS = 30 * 24 * 60 * 60 * 1000
"""The ledger keeps notifications so long."""
_ENTRIES_AT_ONCE = 500
_SWEEP_SECONDS = 15 * 60.0


class Ledger:
    """What was announced to each organization."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(self, organization_id: int, query: Query, page: Page) -> tuple[Sequence[Entry], str]:
        """A page of an organization's entries, and the token of the next one."""
        async with self._database.read() as connection:
            found = await store.entries(connection, organization_id, query, page.limit + 1)
        return page.cut(found)

    async def reached(self, organization_id: int) -> LogId:
        """How far the organization's log is copied."""
        async with self._database.read() as connection:
            return await store.cursor(connection, organization_id)

    async def append(self, organization_id: int, entries: Sequence[Entry], dispatcher: Dispatcher) -> None:
        """Adds entries of the log, in its order, and their deliveries; adding twice is adding once."""
        async with self._database.read() as connection:
            wanted = await subscriptions.enabled(connection, organization_id)
        audience = await dispatcher.audience(organization_id, wanted, entries)
        for some in audience.portions(entries):
            async with self._database.write() as connection:
                new = await store.append(connection, organization_id, some)
                rows = await dispatcher.add(connection, audience, new)
            dispatcher.sent_off(rows)

    async def organizations(self) -> Sequence[int]:
        """Those that ever had a notification."""
        async with self._database.read() as connection:
            return await store.organizations(connection)

    async def forget(self, organization_id: int, before_ms: int) -> bool:
        """Removes some of what is older, with its deliveries: whether there may be more."""
        async with self._database.write() as connection:
            more_entries = await store.forget(connection, organization_id, before_ms)
            return await subscriptions.forget(connection, organization_id, before_ms) or more_entries

    async def backwards(self, organization_id: int, after: LogId, upto: LogId) -> AsyncIterator[Sequence[Logged]]:
        """Pages of what lies behind `after`, up to `upto`, newest first."""
        while True:
            async with self._database.read() as connection:
                page = await store.backwards(connection, organization_id, after, upto, _ENTRIES_AT_ONCE)
            yield page
            if len(page) < _ENTRIES_AT_ONCE:
                return
            upto = page[-1].id.before()


class LedgerSweep:
    """A component: removes what the ledger has kept long enough, also of organizations that fell silent."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def run(self, stop: asyncio.Event) -> None:
        """Sweeps every 15 minutes."""
        while not await wait(stop, _SWEEP_SECONDS):
            try:
                await self.sweep(now_ms() - KEPT_MS, stop)
            except AemosError as error:
                log.warning("the ledger keeps what is old: %s", error.detail)

    async def sweep(self, before_ms: int, stop: asyncio.Event) -> None:
        """Removes what is older, a little at a time."""
        for organization_id in await self._ledger.organizations():
            while not stop.is_set() and await self._ledger.forget(organization_id, before_ms):
                pass


class History:
    """What was announced, newest first: from the log, and what it no longer has, from the ledger."""

    def __init__(self, ledger: Ledger, redis: RedisClient) -> None:
        self._ledger = ledger
        self._redis = redis

    async def backwards(self, organization_id: int, after: LogId, upto: LogId) -> AsyncIterator[Sequence[Logged]]:
        """Pages of what lies behind `after`, up to `upto`, newest first. UNAVAILABLE when Redis does not answer."""
        full = _ENTRIES_AT_ONCE
        while full == _ENTRIES_AT_ONCE and upto > after:
            page = await self._page(organization_id, f"({after}", str(upto), _ENTRIES_AT_ONCE)
            yield page
            full = len(page)
            upto = page[-1].id.before() if page else upto
        if upto > after and not await self._page(organization_id, "-", str(after), 1):
            async for page in self._ledger.backwards(organization_id, after, upto):
                yield page

    async def _page(self, organization_id: int, low: str, high: str, count: int) -> Sequence[Logged]:
        try:
            found: Any = await self._redis.xrevrange(notification_log(organization_id), high, low, count)
        except (RedisError, OSError) as error:
            raise unavailable("the notification log did not answer") from error
        return [logged(*entry) for entry in found]


class LogCopier:
    """Copies notification logs from Redis to the ledger, and sets off what subscriptions make of them."""

    def __init__(self, ledger: Ledger, redis: RedisClient, dispatcher: Dispatcher) -> None:
        self._ledger = ledger
        self._redis = redis
        self._dispatcher = dispatcher

    async def copy(self, organization_ids: Iterable[int]) -> None:
        """Copies what is new of these organizations. Raises redis.RedisError or an AemosError of one of them, when all
        had their turn; begun again, goes on."""
        failed: Exception | None = None
        for organization_id in organization_ids:
            try:
                while await self._copy_some(organization_id):
                    pass
            except (AemosError, RedisError) as error:
                failed = error
        if failed is not None:
            raise failed

    async def _copy_some(self, organization_id: int) -> bool:
        """Whether there may be more."""
        after = await self._ledger.reached(organization_id)
        log = notification_log(organization_id)
        found: Any = await self._redis.xrange(log, min=f"({after}", count=_ENTRIES_AT_ONCE)
        if found:
            entries = [codec.entry_from_log(*entry) for entry in found]
            await self._ledger.append(organization_id, entries, self._dispatcher)
        return len(found) == _ENTRIES_AT_ONCE
