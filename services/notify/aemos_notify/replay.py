"""What a client missed, from the notification log and the ledger, and then live, without a gap or a double."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aemos_core.errors import unavailable
from aemos_core.names import everybody_room
from aemos_core.notification_log import Logged, LogId, NotificationFeed, heard_in
from aemos_core.times import now_ms

from aemos_notify.client import Client
from aemos_notify.domain import Coverage, Subject
from aemos_notify.rooms import Event, Rooms
from aemos_notify.service import KEPT_MS, History

MOST_REPLAYED = 10_000
MOST_LOOKED_AT = 200_000
"""Entries of an organization's log, heard by the client or not."""
REPLAY_SECONDS = 20.0
"""From the question to the last write, waiting for a turn included."""
_AT_ONCE = 16
"""Each holds what it replays in memory."""
_EVENTS_A_WRITE = 100


class Replayer:
    """Lets clients into rooms of notifications."""

    def __init__(self, feed: NotificationFeed, history: History, rooms: Rooms) -> None:
        self._feed = feed
        self._history = history
        self._rooms = rooms
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def admit(self, client: Client) -> None:
        """From now on the client hears what is for everybody."""
        organization = client.caller.organization_id
        client.coverage = self._from_now_on(organization)
        self._rooms.join(everybody_room(organization), client)
        client.greet()

    def enter(self, client: Client, subject: Subject) -> None:
        """From now on the client hears the subject."""
        if not client.greeted:
            client.release()
        reached = self._feed.reached(client.caller.organization_id)
        client.coverage = client.coverage.with_rooms(subject.rooms, reached)
        self._join(client, subject)

    async def replay(self, client: Client, subject: Subject, after: LogId) -> bool:
        """As `enter`, and first hears what came behind `after`; whether some of that is left out.

        The newest 10,000 are told. UNAVAILABLE when they cannot be read, or are not taken, in time: then the client
        hears the subject not at all.
        """
        try:
            async with asyncio.timeout(REPLAY_SECONDS), self._turns:
                return await self._replay(client, subject, after)
        except TimeoutError:
            raise unavailable("the replay took too long") from None

    async def _replay(self, client: Client, subject: Subject, after: LogId) -> bool:
        organization = client.caller.organization_id
        before = client.coverage if client.greeted else self._from_now_on(organization)
        rooms = (*subject.rooms, everybody_room(organization))
        client.coverage = before.with_rooms(rooms, after)
        new = [room for room in subject.rooms if room not in before.since]
        self._join(client, subject)
        try:
            return await self._catch_up(client, before, after)
        except BaseException:
            client.coverage = before
            for room in new:
                self._rooms.leave(room, client)
            raise
        finally:
            client.release()

    def _from_now_on(self, organization_id: int) -> Coverage:
        return Coverage({everybody_room(organization_id): self._feed.reached(organization_id)})

    def _join(self, client: Client, subject: Subject) -> None:
        for room in subject.rooms:
            self._rooms.join(room, client)

    async def _catch_up(self, client: Client, before: Coverage, after: LogId) -> bool:
        """What the feed has handed over is in the log, and what it hands over from now on is held back: the first ends
        where the second begins."""
        organization = client.caller.organization_id
        truncated, began = after.ms < now_ms() - KEPT_MS, self._feed.reached(organization)
        while True:
            client.hold()
            reached = self._feed.reached(organization)

            def is_missed(entry: Logged) -> bool:
                rooms = heard_in(organization, entry.rooms)
                heard = entry.id <= began and before.includes(entry.id, rooms)
                return not heard and client.coverage.includes(entry.id, rooms)

            missed: list[Logged] = []
            looked_at = 0
            async for page in self._history.backwards(organization, after, reached):
                missed += filter(is_missed, page)
                looked_at += len(page)
                if len(missed) >= MOST_REPLAYED or looked_at >= MOST_LOOKED_AT:
                    truncated = True
                    break
            await _pour(client, missed[MOST_REPLAYED - 1 :: -1])
            if not client.overflowed:
                return truncated
            after = reached


async def _pour(client: Client, entries: Sequence[Logged]) -> None:
    for start in range(0, len(entries), _EVENTS_A_WRITE):
        some = entries[start : start + _EVENTS_A_WRITE]
        await client.pour(Event((entry.event, entry.notification) for entry in some))
