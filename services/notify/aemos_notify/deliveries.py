"""From Redis to whoever is in a room: notifications, and readings as they are stored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import groupby

from aemos.v1.job_pb2 import CommittedReading, ReadingBatch
from aemos_core import telemetry
from aemos_core.names import READINGS_COMMITTED, device_id_room, device_room
from aemos_core.redis_link import RedisClient, Subscriber
from aemos_core.times import now_ms

from aemos_notify.codec import Published, published_decoder, reading_to_json
from aemos_notify.rooms import Event, Member, Rooms
from aemos_notify.socketio_edge import organization_room

DATA_STREAM = "data-stream"


class Deliveries:
    """Handlers of the two channels. `noticed` hears the organization of each notification."""

    def __init__(self, devices: Rooms, organizations: Rooms, noticed: Callable[[int], None]) -> None:
        self._devices = devices
        self._organizations = organizations
        self._noticed = noticed

    def published(self, message: bytes) -> None:
        """A notification: its object goes out byte for byte, to each client once."""
        published = published_decoder.decode(message)
        if published.organizationId:
            self._noticed(published.organizationId)
        if members := self._members(published):
            with telemetry.child(telemetry.SPAN_EMIT, bytes.fromhex(published.traceContext), {"clients": len(members)}):
                _send(members, Event([(published.event, bytes(published.notification).decode())]))

    def _members(self, published: Published) -> set[Member]:
        if published.broadcastAll:
            return self._organizations.members(organization_room(published.organizationId))
        return self._devices.members(*published.rooms)

    def committed(self, message: bytes) -> None:
        """Stored readings: one write to each client for all of a device's neighbours in the batch."""
        now = now_ms()
        for (uuid, device_id), readings in groupby(ReadingBatch.FromString(message).readings, _device):
            if members := self._devices.members(device_room(uuid), device_id_room(device_id)):
                _send(members, Event((DATA_STREAM, reading_to_json(reading, now)) for reading in readings))


def _device(reading: CommittedReading) -> tuple[str, int]:
    return reading.device_uuid, reading.device_id


def _send(members: Iterable[Member], event: Event) -> None:
    for member in members:
        member.send(event)


class LiveReadings:
    """A component: listens to stored readings only while somebody is there to see them, for they are many."""

    def __init__(self, redis: RedisClient, committed: Callable[[bytes], None]) -> None:
        self._subscriber = Subscriber(redis, {READINGS_COMMITTED: committed}, on_gap=self._subscribed)
        self._wanted, self._unwanted = asyncio.Event(), asyncio.Event()
        self._flowing, self._settled = asyncio.Event(), asyncio.Event()
        self._one_round = asyncio.Lock()

    def occupied(self, somebody: bool) -> None:
        """Whether anybody is in a device's room."""
        (self._wanted if somebody else self._unwanted).set()
        (self._unwanted if somebody else self._wanted).clear()
        if not somebody:
            self._flowing.clear()

    def _subscribed(self) -> None:
        self._settled.set()
        if self._wanted.is_set():
            self._flowing.set()

    async def listening(self) -> None:
        """Returns when readings flow, or after a second: without Redis there are none to miss."""
        await _within_a_second(self._flowing)

    async def run(self, stop: asyncio.Event) -> None:
        """Listens, when somebody is there, until told to stop."""
        rounds = asyncio.create_task(self._rounds())
        await stop.wait()
        self.occupied(False)
        async with self._one_round:
            rounds.cancel()
        await asyncio.wait([rounds])

    async def _rounds(self) -> None:
        while True:
            await self._wanted.wait()
            async with self._one_round:
                await self._listen()

    async def _listen(self) -> None:
        self._settled.clear()
        enough = asyncio.Event()
        subscription = asyncio.create_task(self._subscriber.run(enough))
        await self._unwanted.wait()
        # On Python 3.11 redis-py swallows a cancellation that meets a command on its way (asyncio.wait_for does), and
        # the subscription would never end: SUBSCRIBE goes through first.
        await _within_a_second(self._settled)
        enough.set()
        await subscription


async def _within_a_second(event: asyncio.Event) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), 1.0)
