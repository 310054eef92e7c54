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
from aemos_ingest.domain import Source, SourceKey, UnknownVariable, Variable, type_of, typed_value
from aemos_ingest.latest import LatestReadings
from aemos_ingest.readings_store import Message
from aemos_ingest.repeats import Incoming
from aemos_ingest.sightings import Sightings
from aemos_ingest.sources import Sources

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
        incoming = [Incoming.of(reading) for reading in readings]
        keys = {one.sender for one in incoming}
        await self._take(incoming, keys)
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

    async def _take(self, incoming: Sequence[Incoming], keys: set[SourceKey]) -> None:
        sources = await self._sources.load(keys)
        for one in incoming:
            _resolve(one, sources)
        if unknown := [one.error for one in incoming if _may_be_made(one.error)]:
            await self._sources.create_variables(unknown)
            sources = await self._sources.load(keys)
            for one in incoming:
                if _may_be_made(one.error):
                    _resolve(one, sources)
                    if _may_be_made(one.error):
                        one.error = unavailable("the variable could not be made")

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
            values = [_values(one) for one in fresh]
            await readings_store.store(connection, values, _names(fresh))
            await repeats.yield_to_claims(connection, fresh)
            rows = await self._outbox.add(connection, rows)
        self._outbox.committed(rows)
        self._latest.committed(values)
        with suppress(AemosError):  # nobody is promised a live reading
            self._live.put(b"".join(row.payload for row in rows), lambda _: None)

    async def _publish(self, batches: list[bytes]) -> list[None]:
        try:
            await self._redis.publish(READINGS_COMMITTED, b"".join(batches))
        except (RedisError, OSError) as error:
            log.debug("live readings were dropped: %s", type(error).__name__)
        return [None] * len(batches)


def _resolve(one: Incoming, sources: Mapping[SourceKey, Source]) -> None:
    """Finds its variable, and its value as that has it, or an error."""
    reading, source, one.error = one.request, sources.get(one.sender), None
    try:
        if source is None:
            raise unauthenticated()
        sensor, name, value = source.sensor(reading.sensor_uuid), reading.variable_name, reading.value
        variable = sensor.variables.get(name)
        if variable is None:
            raise UnknownVariable(source, sensor, name, type_of(value))
        one.text, one.number = typed_value(value, variable.type)
        one.variable = variable
    except AemosError as error:
        one.error = error


def _may_be_made(error: AemosError | None) -> TypeGuard[UnknownVariable]:
    return isinstance(error, UnknownVariable) and error.may_be_made


def _rows(fresh: Sequence[Incoming], first_id: int) -> list[Row]:
    """Gives readings their ids, and announces them to the rules."""
    partitions: dict[int, list[Incoming]] = {}
    for reading_id, one in enumerate(fresh, first_id):
        one.id = reading_id
        partitions.setdefault(one.variable.partition, []).append(one)
    return [_row(partition, readings) for partition, readings in partitions.items()]


def _names(fresh: Sequence[Incoming]) -> dict[tuple[int, str], Message]:
    return {one.name: Message(one.digest, one.id, one.received_at_ms) for one in fresh if one.message_id}


def _row(partition: int, readings: Sequence[Incoming]) -> Row:
    """What a job takes is bounded by its readings and by their KiB."""
    variables = {one.variable.telemetry_data_id: one.variable for one in readings}
    batch = job_pb2.ReadingBatch(sources=map(_source, variables.values()))
    add = batch.readings.add
    for one in readings:
        request = one.request
        add(
            id=one.id,
            telemetry_data_id=one.variable.telemetry_data_id,
            number=one.number,
            text=one.text,
            received_at_ms=one.received_at_ms,
            trace_context=request.trace_context,
            depth=request.depth,
        )
    payload = batch.SerializeToString()
    return Row(EVALUATE_READINGS.name, partition, payload, max(len(readings), len(payload) // 1024))


def _source(variable: Variable) -> job_pb2.ReadingSource:
    return job_pb2.ReadingSource(
        telemetry_data_id=variable.telemetry_data_id,
        organization_id=variable.organization_id,
        device_id=variable.device_id,
        device_uuid=variable.device_uuid,
        sensor_id=variable.sensor_id,
        sensor_uuid=variable.sensor_uuid,
        variable_name=variable.name,
        variable_type=variable.type,
    )


def _values(one: Incoming) -> readings_store.Values:
    variable_id, origin = one.variable.telemetry_data_id, one.origin_key or None
    return variable_id, one.received_at_ms, one.id, one.text, one.number, origin
