"""Readings as they are stored, to whoever looks at them: the newest ten times a second, or each."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import groupby
from typing import NamedTuple

from aemos.v1.job_pb2 import CommittedReading, ReadingBatch, ReadingSource
from aemos_core.names import READINGS_COMMITTED, device_room, sensor_room
from aemos_core.redis_link import RedisClient, Subscriber
from aemos_core.times import now_ms
from aemos_core.waiting import wait

from aemos_notify.codec import reading_to_json
from aemos_notify.rooms import Event, Member, Rooms, of_organization

DATA_STREAM = "data-stream"
COALESCED_SECONDS = 0.1
"""A room hears coalesced readings at most so often."""


class _Source(NamedTuple):
    """An organization's device's sensor, by the rooms in which its readings are heard."""

    organization_id: int
    device: str
    sensor: str


class _Live(NamedTuple):
    """A reading and its variable."""

    of: ReadingSource
    reading: CommittedReading


class _Waiting(NamedTuple):
    """The newest reading of a variable and how many others it stands for."""

    live: _Live
    merged: int


class LiveReadings:
    """Hands readings to the members of their device's and their sensor's rooms, to each once.

    In a room of `coalesced`, what comes within a tenth of a second of the last event waits, and of each variable only
    the newest remains; after a rest, a reading leaves at once. Nothing is kept of a room that rests.
    """

    on_occupied: Callable[[bool], None] = staticmethod(lambda occupied: None)
    """Hears whether anybody is in a room."""

    def __init__(self) -> None:
        self.coalesced, self.every = Rooms(), Rooms()
        self._resting: dict[str, dict[tuple[_Source, int], _Waiting]] = {}

    def enter(self, room: str, member: Member, *, every: bool) -> None:
        """From now on the member hears the room's readings: each of them, or the newest."""
        (self.every if every else self.coalesced).join(room, member)
        (self.coalesced if every else self.every).leave(room, member)
        self.on_occupied(True)

    def leave(self, room: str, member: Member) -> None:
        """It hears them no more."""
        self.coalesced.leave(room, member)
        self.every.leave(room, member)
        self._left()

    def leave_all(self, member: Member) -> None:
        """It hears none."""
        self.coalesced.leave_all(member)
        self.every.leave_all(member)
        self._left()

    def _left(self) -> None:
        if self.coalesced.empty and self.every.empty:
            self.on_occupied(False)

    def committed(self, message: bytes) -> None:
        """Stored readings: one write to each client for all of a sensor's neighbours in the batch."""
        now, batch = now_ms(), ReadingBatch.FromString(message)
        variables = {one.telemetry_data_id: one for one in batch.sources}
        committed = (_Live(variables[reading.telemetry_data_id], reading) for reading in batch.readings)
        for (organization_id, device, sensor), group in groupby(committed, _whose):
            source, readings = _Source(organization_id, device_room(device), sensor_room(sensor)), list(group)
            if members := self.every.members(source.device, source.sensor):
                _send(source, members, Event((DATA_STREAM, reading_to_json(*live, now)) for live in readings))
            for room in (source.device, source.sensor):
                if self.coalesced.occupied(room):
                    self._coalesce(room, source, readings)

    def _coalesce(self, room: str, source: _Source, readings: Iterable[_Live]) -> None:
        waiting = self._resting.get(room)
        if waiting is None:
            waiting = self._resting[room] = {}
            asyncio.get_running_loop().call_soon(self._flush, room)
        for live in readings:
            key = source, live.of.telemetry_data_id
            known = waiting.get(key)
            waiting[key] = _Waiting(live, 0) if known is None else _newer(known, live)

    def _flush(self, room: str) -> None:
        waiting = self._resting.pop(room)
        if not waiting:
            return
        self._resting[room] = {}
        asyncio.get_running_loop().call_later(COALESCED_SECONDS, self._flush, room)
        now, by_source = now_ms(), defaultdict(list)
        for (source, _), (live, merged) in waiting.items():
            by_source[source].append((DATA_STREAM, reading_to_json(*live, now, merged)))
        for source, events in by_source.items():
            _send(source, self._members(room, source), Event(events))

    def _members(self, room: str, source: _Source) -> set[Member]:
        """Of those in both rooms of a reading, the sensor's says nothing that the device's says, or that each does."""
        members = self.coalesced.members(room) - self.every.members(source.device, source.sensor)
        return members - self.coalesced.members(source.device) if room == source.sensor else members


def _whose(live: _Live) -> tuple[int, str, str]:
    return live.of.organization_id, live.of.device_uuid, live.of.sensor_uuid


def _newer(known: _Waiting, live: _Live) -> _Waiting:
    newest = max(known.live, live, key=lambda one: (one.reading.received_at_ms, one.reading.id))
    return _Waiting(newest, known.merged + 1)


def _send(source: _Source, members: Iterable[Member], event: Event) -> None:
    for member in of_organization(members, source.organization_id):
        member.send(event)


class CommittedReadings:
    """A component: listens to stored readings only while somebody is there to see them, for they are many."""

    def __init__(self, redis: RedisClient, readings: LiveReadings) -> None:
        self._subscriber = Subscriber(redis, {READINGS_COMMITTED: readings.committed}, on_gap=self._subscribed)
        readings.on_occupied = self.occupied
        self._wanted, self._unwanted = asyncio.Event(), asyncio.Event()
        self._is_flowing, self._settled = asyncio.Event(), asyncio.Event()

    def occupied(self, somebody: bool) -> None:
        """Whether anybody is in a room of readings."""
        (self._wanted if somebody else self._unwanted).set()
        (self._unwanted if somebody else self._wanted).clear()
        if not somebody:
            self._is_flowing.clear()

    def _subscribed(self) -> None:
        self._settled.set()
        if self._wanted.is_set():
            self._is_flowing.set()

    async def flowing(self) -> None:
        """Returns when readings flow, or after a second: without Redis there are none to miss."""
        await _within_a_second(self._is_flowing)

    async def run(self, stop: asyncio.Event) -> None:
        """Listens, when somebody is there, until told to stop."""
        while not await wait(stop, None, self._wanted):
            self._settled.clear()
            enough = asyncio.Event()
            subscription = asyncio.create_task(self._subscriber.run(enough))
            await wait(stop, None, self._unwanted)
            # On Python 3.11 redis-py swallows a cancellation that meets a command on its way (asyncio.wait_for does),
            # and the subscription would never end: SUBSCRIBE goes through first.
            await _within_a_second(self._settled)
            enough.set()
            await subscription


async def _within_a_second(event: asyncio.Event) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), 1.0)
