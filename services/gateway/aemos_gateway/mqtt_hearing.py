"""What MQTT sessions hear: straight from the feed; what they missed or were too slow for, from the notification log."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from aemos_core.names import device_room
from aemos_core.notification_log import Logged, LogId, NotificationFeed, parse_log_id
from aemos_core.redis_link import end
from aemos_core.times import now_ms

from aemos_gateway import mqtt_frames as frames
from aemos_gateway.downlink import Downlink, Listener, is_for_devices
from aemos_gateway.mqtt_admission import Proven
from aemos_gateway.mqtt_connection import Connection
from aemos_gateway.mqtt_sessions import Kept, work_off
from aemos_gateway.service import MQTT

log = logging.getLogger("aemos.gateway.mqtt")

MOST_UNACKNOWLEDGED = 64
"""QoS 1 messages to a session that wait for its PUBACK. Notifications beyond them come from the log when there is room;
what is in no log is dropped and counted."""
MOST_QOS = 1
REFUSED = 0x80
_LOGGED, _UNLOGGED = 1, 0x8000
"""First packet ids of notifications, and of what is in no log: the former follow from the place in the log, so what is
sent again has the packet id it had (MQTT 3.1.1, 4.4)."""
_ENTRIES_AT_ONCE = 500
_LOGS_AT_ONCE = 8
"""Organizations whose logs are read at the same time."""

ReadLog = Callable[[int, LogId, LogId, int], Awaitable[Sequence[Logged]]]
"""Entries of an organization behind a place, up to another one, so many at the most."""


class Hearing:
    """What one session hears on one connection: the topics it is granted, a window of what it has not acknowledged,
    and its place in the notification log.

    While it is level with the log, notifications go straight to the connection; when its window is full it falls
    behind, and goes on from the log once it has room again.
    """

    def __init__(self, connection: Connection, proven: Proven, downlink: Downlink, backlog: Backlog) -> None:
        self._connection = connection
        self._downlink = downlink
        self._backlog = backlog
        self.organization_id = proven.device.organization_id
        self.room = device_room(proven.device.device_uuid)
        self._notifications = proven.topics.notifications
        self._hearable = {proven.topics.notifications, proven.topics.errors}
        close = partial(connection.end, "an operator asked for it")
        self._listener = Listener(proven.device.device_uuid, MQTT, connection.peer, self._notified, close)
        self._granted: dict[str, int] = {}
        self._unacknowledged: dict[int, LogId | None] = {}
        """Packet id to the place before the notification, None for what is in no log; in the order sent."""
        self._number, self._unlogged_number = _LOGGED, _UNLOGGED
        self._maybe_repeated = 0
        self._overtaken = False
        """Something was published for it that is to be read from the log."""
        self._dropped = 0
        self.place: LogId | None = None
        """When it is behind the log: everything up to here was sent to it, or is not for it."""

    def resume(self, kept: Kept) -> None:
        """Goes on where the session's last connection ended."""
        for topic, qos in kept.topics.items():
            self.grant(topic, qos)
        self.place, self._number = parse_log_id(kept.place, "place"), kept.number
        self._maybe_repeated = MOST_UNACKNOWLEDGED
        self._backlog.put(self)

    def kept(self) -> Kept:
        """What the session's next connection is to go on with."""
        place, number = self.place or self._backlog.feed.reached(self.organization_id), self._number
        for sent, before in self._unacknowledged.items():
            if before is not None:
                place, number = before, sent
                break
        return Kept(dict(self._granted), str(place), number, now_ms())

    def grant(self, topic: str, qos: int) -> int:
        """The return code of a SUBACK: the QoS granted, or 0x80 for what is not this device's to hear."""
        if topic not in self._hearable:
            return REFUSED
        if topic == self._notifications and topic not in self._granted:
            self._downlink.add(self._listener)
        if topic == self._notifications and not self._granted.get(topic):
            self.place, self._maybe_repeated = None, 0
        self._granted[topic] = min(qos, MOST_QOS)
        return self._granted[topic]

    def revoke(self, topic: str) -> None:
        """Hears the topic no more; what was not granted cannot be revoked, which is no error."""
        self._granted.pop(topic, None)
        if topic == self._notifications:
            self._downlink.remove(self._listener)

    def acknowledged(self, number: int) -> bool:
        """A PUBACK: whether it was waited for, and is of a notification."""
        is_logged = self._unacknowledged.pop(number, None) is not None
        if self.place is not None and len(self._unacknowledged) <= MOST_UNACKNOWLEDGED // 2:
            self._backlog.put(self)
        return is_logged

    def say(self, topic: str, payload: bytes) -> None:
        """Sends what is in no log, if the topic is heard; drops it when the device does not keep up."""
        qos = self._granted.get(topic)
        if qos is None or self._connection.ending:
            return
        if self._connection.congested or (qos and self._is_full):
            self._drop()
            return
        number = self._unlogged_number if qos else 0
        if qos:
            self._unlogged_number = _following(number, _UNLOGGED)
            self._unacknowledged[number] = None
        self._connection.write(frames.publish(topic, payload, number))

    def lost(self) -> None:
        """The connection is gone."""
        self._downlink.remove(self._listener)
        if self._dropped:
            log.warning("mqtt %s: %d messages to the device were dropped", self._connection.peer, self._dropped)

    # What the backlog calls.

    @property
    def takes_more(self) -> bool:
        """It is there, behind the log, and has room for another message."""
        is_heard = self._granted.get(self._notifications) and not self._connection.ending
        return bool(is_heard) and self.place is not None and not self._is_full

    def page_begins(self) -> None:
        """The log is about to be read up to what was published until now."""
        self._overtaken = False

    def missed(self, entry: Logged) -> None:
        """The next entry of its room, unless it had it already."""
        if self.takes_more and self.place is not None and entry.id > self.place:
            self.place = entry.id
            self._send_logged(entry.notification.encode(), entry.id)

    def page_ends(self, place: LogId, *, is_last: bool) -> None:
        """It missed nothing else up to `place`; `is_last`: what is behind that was published since the page began."""
        if self.takes_more and self.place is not None:  # otherwise the page went on without it
            self.place = max(self.place, place)
            if is_last and not self._overtaken:
                self.place, self._maybe_repeated = None, 0

    # Sending.

    def _notified(self, payload: bytes, place: LogId | None) -> None:
        if place is None or not self._granted[self._notifications]:
            self.say(self._notifications, payload)
        elif self.place is None and not self._is_full:
            self._send_logged(payload, place)
        else:
            self._overtaken = True
            self.place = self.place or place.before()

    def _send_logged(self, payload: bytes, place: LogId) -> None:
        number, self._number = self._number, _following(self._number, _LOGGED)
        self._unacknowledged[number] = place.before()
        self._connection.write(frames.publish(self._notifications, payload, number, dup=self._maybe_repeated > 0))
        self._maybe_repeated -= self._maybe_repeated > 0

    @property
    def _is_full(self) -> bool:
        return len(self._unacknowledged) >= MOST_UNACKNOWLEDGED

    def _drop(self) -> None:
        if not self._dropped:
            log.warning("mqtt %s: messages to the device are dropped, it does not keep up", self._connection.peer)
        self._dropped += 1


def _following(number: int, first: int) -> int:
    """The next packet id: from `first` on, half of them all, in a circle."""
    return first + (number - first + 1) % (_UNLOGGED - 1)


class Backlog:
    """Brings sessions level with their organization's log: those that are behind at the time read it together."""

    def __init__(self, feed: NotificationFeed, read: ReadLog) -> None:
        self.feed = feed
        self._read = read
        self._behind: defaultdict[int, set[Hearing]] = defaultdict(set)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(_LOGS_AT_ONCE)

    def put(self, hearing: Hearing) -> None:
        """Sees to it that it gets what it lacks, as far as it takes it."""
        organization_id = hearing.organization_id
        self._behind[organization_id].add(hearing)
        if organization_id not in self._tasks:
            self._tasks[organization_id] = asyncio.create_task(self._bring_level(organization_id))

    async def close(self) -> None:
        """Reads no more."""
        await asyncio.gather(*map(end, self._tasks.values()))

    async def _bring_level(self, organization_id: int) -> None:
        try:
            await work_off(partial(self._step, organization_id))
        finally:
            del self._tasks[organization_id], self._behind[organization_id]

    async def _step(self, organization_id: int) -> bool:
        """A page; an organization waits for its turn before each."""
        behind = self._behind[organization_id]
        async with self._turns:
            reached = await self.feed.position(organization_id)
            if takers := [hearing for hearing in behind if hearing.takes_more]:
                await self._page(organization_id, takers, reached)
        behind.difference_update([hearing for hearing in behind if not hearing.takes_more])
        return bool(behind)

    async def _page(self, organization_id: int, behind: Sequence[Hearing], reached: LogId) -> None:
        by_room: defaultdict[str, list[Hearing]] = defaultdict(list)
        for hearing in behind:
            hearing.page_begins()
            by_room[hearing.room].append(hearing)
        after = min(hearing.place for hearing in behind if hearing.place is not None)
        page = await self._read(organization_id, after, reached, _ENTRIES_AT_ONCE)
        for entry in page:
            for room in entry.rooms if is_for_devices(entry.event) else ():
                for hearing in by_room.get(room, ()):
                    hearing.missed(entry)
        is_last = len(page) < _ENTRIES_AT_ONCE
        for hearing in behind:
            hearing.page_ends(reached if is_last else page[-1].id, is_last=is_last)
