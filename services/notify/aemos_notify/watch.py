"""Watching the notifications of an organization over gRPC: from the ledger, then from the log as it grows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from aemos_core.errors import AemosError, Kind, unavailable
from aemos_core.notification_log import LogId, entries
from aemos_core.paging import Page
from aemos_core.redis_link import RedisClient
from redis.exceptions import RedisError

from aemos_notify import codec
from aemos_notify.domain import Entry, Query
from aemos_notify.service import Ledger

WATCH_SECONDS = 600.0
MOST_WATCHERS = 200
MOST_OF_ONE = 50
"""Organization."""
_END = LogId(2**53, 0)
_LOOK_SECONDS = 5.0
_AT_ONCE = 200


class Watchers:
    """Those who watch at this process; `noticed` wakes those of an organization."""

    def __init__(self, ledger: Ledger, redis: RedisClient) -> None:
        self._ledger = ledger
        self._redis = redis
        self._waiting: dict[int, set[asyncio.Event]] = {}
        self._watching = 0

    def noticed(self, organization_id: int) -> None:
        """The organization had a notification."""
        for event in self._waiting.get(organization_id, ()):
            event.set()

    async def watch(self, organization_id: int, after: LogId, device_uuid: str) -> AsyncIterator[Entry]:
        """Entries behind `after`, oldest first and each once, for 10 minutes."""
        if self._watching >= MOST_WATCHERS or len(self._waiting.get(organization_id, ())) >= MOST_OF_ONE:
            detail = f"at most {MOST_OF_ONE} of an organization watch at a time, {MOST_WATCHERS} of all"
            raise AemosError(Kind.BUSY, detail, reason="too_many_watchers")
        self._watching += 1
        event = asyncio.Event()
        self._waiting.setdefault(organization_id, set()).add(event)
        try:
            async for entry in self._follow(organization_id, after, event):
                if not device_uuid or entry.device_uuid == device_uuid:
                    yield entry
        finally:
            self._watching -= 1
            self._waiting[organization_id].discard(event)
            if not self._waiting[organization_id]:
                del self._waiting[organization_id]

    async def _follow(self, organization_id: int, after: LogId, event: asyncio.Event) -> AsyncIterator[Entry]:
        loop = asyncio.get_running_loop()
        until = loop.time() + WATCH_SECONDS
        while page := (await self._ledger.list(organization_id, Query(after, ""), Page(_AT_ONCE, 0)))[0]:
            for entry in page:
                yield entry
            after = page[-1].log_id
        while loop.time() < until:
            event.clear()
            found = await self._newer(organization_id, after)
            for entry in found:
                yield entry
                after = entry.log_id
            if len(found) < _AT_ONCE:
                with suppress(TimeoutError):
                    await asyncio.wait_for(event.wait(), _LOOK_SECONDS)

    async def _newer(self, organization_id: int, after: LogId) -> list[Entry]:
        try:
            found = await entries(self._redis, organization_id, after, _END, _AT_ONCE)
        except (RedisError, OSError) as error:
            raise unavailable("the notification log did not answer") from error
        return [codec.entry_of(entry) for entry in found]
