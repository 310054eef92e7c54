"""Brings MQTT sessions level with the notification log: what they missed, and what was faster than their PUBACKs."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from aemos_core.errors import AemosError
from aemos_core.notification_log import BEGINNING, Logged, LogId, NotificationFeed
from redis.exceptions import RedisError

from aemos_gateway.downlink import is_for_devices

log = logging.getLogger("aemos.gateway.mqtt")

ReadLog = Callable[[int, LogId, LogId, int], Awaitable[Sequence[Logged]]]
"""Entries of an organization behind a place, up to another one, so many at the most."""
_ENTRIES_AT_ONCE = 500
_AGAIN_SECONDS = 1.0


class Behind(Protocol):
    """A session that is behind the log."""

    organization_id: int
    room: str
    place: LogId
    """Everything up to here was sent to it, or is not for it."""
    overtaken: bool
    """Something for it was published, and is to be read from the log."""

    @property
    def takes_more(self) -> bool:
        """It is there, behind, and has room for another message."""

    def missed(self, entry: Logged) -> None:
        """Takes the next entry of its room."""

    def is_level(self, place: LogId) -> None:
        """It has everything up to `place`: what is published from now on goes to it directly."""


class Backlog:
    """Reads an organization's log once for all of its sessions that are behind at the time."""

    def __init__(self, feed: NotificationFeed, read: ReadLog) -> None:
        self._feed = feed
        self._read = read
        self._behind: defaultdict[int, set[Behind]] = defaultdict(set)
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def put(self, session: Behind) -> None:
        """Sees to it that the session gets what it lacks, as far as it takes it."""
        organization = session.organization_id
        self._behind[organization].add(session)
        if organization not in self._tasks:
            self._tasks[organization] = asyncio.get_running_loop().create_task(self._serve(organization))

    async def close(self) -> None:
        """Stops."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _serve(self, organization_id: int) -> None:
        try:
            while behind := self._behind.pop(organization_id, None):
                try:
                    await self._round(organization_id, behind)
                except (RedisError, OSError, AemosError) as error:
                    log.warning("mqtt sessions wait for the notification log: %s", type(error).__name__)
                    self._behind[organization_id] |= behind
                    await asyncio.sleep(_AGAIN_SECONDS)
        finally:
            del self._tasks[organization_id]

    async def _round(self, organization_id: int, sessions: Iterable[Behind]) -> None:
        await self._feed.position(organization_id)
        behind = [session for session in sessions if session.takes_more]
        after = min((session.place for session in behind), default=BEGINNING)
        while behind:
            reached = self._feed.reached(organization_id)
            for session in behind:
                session.overtaken = False
            page = await self._read(organization_id, after, reached, _ENTRIES_AT_ONCE)
            _hand_out(page, behind)
            # Who is full leaves for good, for the page went on without it: it comes back when it has room.
            behind = [session for session in behind if session.takes_more]
            after = page[-1].id if page else reached
            if len(page) < _ENTRIES_AT_ONCE:
                after = reached
                for session in behind:
                    if not session.overtaken:
                        session.is_level(reached)
                behind = [session for session in behind if session.overtaken]


def _hand_out(page: Iterable[Logged], sessions: Iterable[Behind]) -> None:
    by_room: defaultdict[str, list[Behind]] = defaultdict(list)
    for session in sessions:
        by_room[session.room].append(session)
    for entry in page:
        for room in entry.rooms if is_for_devices(entry.event) else ():
            for session in by_room.get(room, ()):
                if session.takes_more and entry.id > session.place:
                    session.missed(entry)
