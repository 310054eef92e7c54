"""Watching the notifications of an organization over gRPC: from the ledger, then from the log as it grows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from aemos.v1 import notification_pb2 as pb
from aemos_core.database import Database
from aemos_core.errors import AemosError, Kind
from aemos_core.notification_log import END, Logged, LogId, entries
from aemos_core.redis_link import RedisClient
from aemos_core.waiting import wait

from aemos_notify import codec, store

WATCH_SECONDS = 600.0
MOST_WATCHERS = 200
MOST_OF_ONE = 50
"""Organization."""
_LOOK_SECONDS = 5.0
_AT_ONCE = 200


class Watchers:
    """A component: those who watch at this process; `noticed` wakes those of an organization."""

    def __init__(self, database: Database, redis: RedisClient) -> None:
        self._database = database
        self._redis = redis
        self._waiting: dict[int, set[asyncio.Event]] = {}
        self._stop = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Ends every watch when told to stop: each goes on elsewhere."""
        self._stop = stop
        await stop.wait()

    def noticed(self, organization_id: int) -> None:
        """The organization had a notification."""
        for event in self._waiting.get(organization_id, ()):
            event.set()

    async def watch(self, organization_id: int, after: LogId, device_uuid: str) -> AsyncIterator[pb.Notification]:
        """Notifications behind `after`, oldest first and each once, for 10 minutes."""
        others = self._waiting.get(organization_id, ())
        if len(others) >= MOST_OF_ONE or sum(map(len, self._waiting.values())) >= MOST_WATCHERS:
            detail = f"at most {MOST_OF_ONE} of an organization watch at a time, {MOST_WATCHERS} of all"
            raise AemosError(Kind.BUSY, detail, reason="too_many_watchers")
        event = asyncio.Event()
        waiting = self._waiting.setdefault(organization_id, set())
        waiting.add(event)
        try:
            async for entry in self._follow(organization_id, after, device_uuid, event):
                found = codec.entry_to_pb(entry)
                if device_uuid in ("", found.device_uuid):
                    yield found
        finally:
            waiting.discard(event)
            if not waiting:
                del self._waiting[organization_id]

    async def _follow(
        self, organization_id: int, after: LogId, device_uuid: str, event: asyncio.Event
    ) -> AsyncIterator[Logged]:
        until = time.monotonic() + WATCH_SECONDS
        page = await self._recorded(organization_id, after, device_uuid)
        while page and not self._stop.is_set():
            for entry in page:
                yield entry
            after = page[-1].id
            page = await self._recorded(organization_id, after, device_uuid)
        while time.monotonic() < until and not self._stop.is_set():
            event.clear()
            page = await entries(self._redis, organization_id, after, END, _AT_ONCE)
            for entry in page:
                yield entry
                after = entry.id
            if len(page) < _AT_ONCE:
                await wait(self._stop, _LOOK_SECONDS, event)

    async def _recorded(self, organization_id: int, after: LogId, device_uuid: str) -> list[Logged]:
        async with self._database.read() as connection:
            return await store.entries(connection, organization_id, after, _AT_ONCE, device_uuid=device_uuid)
