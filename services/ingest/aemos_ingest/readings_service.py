"""Use cases of readings: type them, store them in natural batches, announce them; give them back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import TypeGuard

from aemos.v1 import data_stream_pb2 as pb
from aemos.v1 import job_pb2
from aemos_core import telemetry
from aemos_core.batching import Batcher
from aemos_core.database import Database
from aemos_core.errors import AemosError, Kind, unauthenticated, unavailable
from aemos_core.jobs import EVALUATE_READINGS
from aemos_core.names import READINGS_COMMITTED
from aemos_core.outbox import OutboxRows, Row
from aemos_core.redis_link import RedisClient
from redis.exceptions import RedisError

from aemos_ingest import readings_store, repeats
from aemos_ingest.domain import Source, UnknownVariable, type_of, typed_value
from aemos_ingest.latest import LatestReadings
from aemos_ingest.readings_store import Message
from aemos_ingest.repeats import Incoming
from aemos_ingest.sightings import Sightings
from aemos_ingest.sources import SourceKey, Sources

log = logging.getLogger("aemos.ingest")

_MOST_IN_COMMIT = 2_000
_MOST_WAITING = 50_000
_MOST_LIVE = 100
_COLLISIONS = 3


class Readings:
    """A component. One commit is under way at a time, so what one device sends stays in order."""

    def __init__(
        self,
        database: Database,
        outbox: OutboxRows,
        sources: Sources,
        sightings: Sightings,
        redis: RedisClient,
        latest: LatestReadings,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._sources = sources
        self._sightings = sightings
        self._redis = redis
        self._latest = latest
        self._ids = readings_store.ReadingIds(database)
        self._commits: Batcher[Sequence[Incoming], None] = Batcher(
            self._commit, max_batch=_MOST_IN_COMMIT, max_waiting=_MOST_WAITING, weight=len
        )
        self._live: Batcher[bytes, None] = Batcher(self._publish, max_batch=1_000, max_waiting=_MOST_LIVE)

    async def write(self, readings: Sequence[pb.NewReading], carried: bytes) -> list[Incoming]:
        """Stores what can be stored, durable when it returns; says of each reading what became of it."""
        keys = set(map(_source_key, readings))
        incoming = await self._take(readings, keys)
        repeats.drop_groups(incoming)
        accepted = [one for one in incoming if one.is_fresh]
        if accepted:
            with telemetry.child(telemetry.SPAN_COMMIT, carried, {"batch.size": len(accepted)}):
                await self._commits.submit(accepted)
            self._sightings.saw(key for key in keys if isinstance(key, int))
        return incoming

    async def run(self, stop: asyncio.Event) -> None:
        """Ends when what was taken is committed."""
        await stop.wait()
        await self._commits.drain()
        await self._live.drain()
        await self._latest.drain()

    async def _take(self, readings: Sequence[pb.NewReading], keys: set[SourceKey]) -> list[Incoming]:
        sources = await self._sources.load(keys)
        incoming = [_taken(reading, sources) for reading in readings]
        if unknown := [one.error for one in incoming if _may_be_made(one.error)]:
            await self._sources.create_variables(unknown)
            sources = await self._sources.load(keys)
            incoming = [_taken(one.request, sources) if _may_be_made(one.error) else one for one in incoming]
            for one in incoming:
                if _may_be_made(one.error):
                    one.error = unavailable("the variable could not be made")
        return incoming

    async def _commit(self, batches: list[Sequence[Incoming]]) -> list[None]:
        accepted = list(chain.from_iterable(batches))
        for _ in range(_COLLISIONS):
            try:
                await self._store(accepted, batches)
                break
            except AemosError as error:
                if error.kind is not Kind.EXISTS:
                    self._latest.lost()  # it may be committed all the same
                    raise
                for one in accepted:  # another process stored one of these messages: look again
                    one.begin_again()
        else:
            raise unavailable("the same messages are being stored elsewhere")
        for one in accepted:
            one.settle()
        return [None] * len(batches)

    async def _store(self, accepted: Sequence[Incoming], batches: Sequence[Sequence[Incoming]]) -> None:
        first_id = await self._ids.take(len(accepted))
        await repeats.claim(self._database, accepted)
        settled_ms = await repeats.look_back(self._database, accepted)
        async with self._database.write() as connection:
            await repeats.recognize(connection, accepted, settled_ms)
            repeats.drop_batches(batches)
            fresh = [one for one in accepted if one.is_fresh]
            if not fresh:
                return
            rows = _rows(fresh, first_id)
            await readings_store.store(connection, [_values(one) for one in fresh], _names(fresh))
            await repeats.yield_to_claims(connection, fresh)
            rows = await self._outbox.add(connection, rows)
        self._outbox.committed(rows)
        self._latest.committed(one.message for one in fresh)
        with suppress(AemosError):  # nobody is promised a live reading
            self._live.put(b"".join(row.payload for row in rows), lambda _: None)

    async def _publish(self, batches: list[bytes]) -> list[None]:
        try:
            await self._redis.publish(READINGS_COMMITTED, b"".join(batches))
        except (RedisError, OSError) as error:
            log.debug("live readings were dropped: %s", type(error).__name__)
        return [None] * len(batches)


def _source_key(reading: pb.NewReading) -> SourceKey:
    return reading.token_id or (reading.organization_id, reading.sensor_uuid)


def _taken(reading: pb.NewReading, sources: Mapping[SourceKey, Source]) -> Incoming:
    source = sources.get(_source_key(reading))
    if source is None:
        return Incoming(reading, error=unauthenticated())
    try:
        return Incoming(reading, _message(reading, source), source.partition)
    except AemosError as error:
        return Incoming(reading, error=error)


def _message(reading: pb.NewReading, source: Source) -> job_pb2.CommittedReading:
    sensor = source.sensor(reading.sensor_uuid)
    variable = sensor.variables.get(reading.variable_name)
    if variable is None:
        raise UnknownVariable(source, sensor, reading.variable_name, type_of(reading.value))
    text, number = typed_value(reading.value, variable.type)
    return job_pb2.CommittedReading(
        organization_id=source.organization_id,
        device_id=source.device_id,
        device_uuid=source.device_uuid,
        sensor_id=sensor.id,
        sensor_uuid=sensor.uuid,
        telemetry_data_id=variable.telemetry_data_id,
        variable_name=reading.variable_name,
        number=number,
        text=text,
        variable_type=variable.type,
        received_at_ms=reading.received_at_ms,
        trace_context=reading.trace_context,
        depth=reading.depth,
    )


def _may_be_made(error: AemosError | None) -> TypeGuard[UnknownVariable]:
    return isinstance(error, UnknownVariable) and error.may_be_made


def _rows(fresh: Sequence[Incoming], first_id: int) -> list[Row]:
    """Gives readings their ids, and announces them to the rules."""
    partitions: dict[int, job_pb2.ReadingBatch] = {}
    for reading_id, one in enumerate(fresh, first_id):
        one.message.id = reading_id
        partitions.setdefault(one.partition, job_pb2.ReadingBatch()).readings.append(one.message)
    return [_row(partition, batch) for partition, batch in partitions.items()]


def _names(fresh: Sequence[Incoming]) -> dict[tuple[int, str], Message]:
    return {
        one.name: Message(one.digest, one.message.id, one.message.received_at_ms)
        for one in fresh
        if one.request.message_id
    }


def _row(partition: int, batch: job_pb2.ReadingBatch) -> Row:
    """What a job takes is bounded by its readings and by their KiB."""
    payload = batch.SerializeToString()
    return Row(EVALUATE_READINGS.name, partition, payload, max(len(batch.readings), len(payload) // 1024))


def _values(one: Incoming) -> readings_store.Values:
    message = one.message
    number = message.number if message.HasField("number") else None
    origin = one.request.origin_key or None
    return message.telemetry_data_id, message.received_at_ms, message.id, message.text, number, origin
