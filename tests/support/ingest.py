"""Ingest's use cases on a real database, without Redis: what they announce stays in the outbox."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aemos.v1 import data_stream_pb2 as pb
from aemos_core.database import Database
from aemos_core.errors import AemosError
from aemos_core.identity import Caller, set_caller
from aemos_core.outbox import Outbox, Row
from aemos_core.times import now_ms
from aemos_ingest import codec, tables
from aemos_ingest.latest import LatestReadings
from aemos_ingest.readings_service import Readings
from aemos_ingest.sightings import Sightings
from aemos_ingest.sources import Sources
from sqlalchemy import func, select

from tests.support.registry import Registry, call

ADMIN = Caller(1, 1, "admin", "token")


class Unreachable:
    """Redis, away: whatever is published is lost."""

    async def publish(self, channel: str, message: bytes) -> None:
        raise ConnectionError(channel)

    async def unlink(self, key: str) -> None:
        raise ConnectionError(key)

    def register_script(self, script: str) -> Any:
        """One that is never called: whoever cannot reach Redis begins with `unlink`."""


class KeptOutbox(Outbox):
    """Rows are written and never sent."""

    def committed(self, rows: Sequence[Row]) -> None:
        """Leaves them in the table."""


@dataclass
class Ingest:
    """One ingest process on a database, and a device with a sensor."""

    database: Database
    registry: Registry
    readings: Readings
    sightings: Sightings
    sources: Sources
    token_id: int = 0
    device_id: int = 0

    async def write(self, *readings: pb.NewReading) -> list[pb.WriteResult]:
        """What WriteReadings answers."""
        return [codec.write_result(outcome) for outcome in await self.readings.write(readings, b"")]

    def reading(self, value: bytes = b"21.5", name: str = "temperature", **fields: Any) -> pb.NewReading:
        """A reading of the device, as the gateway hands it over."""
        given = {"received_at_ms": now_ms(), "at_arrival": True, "token_id": self.token_id, **fields}
        return pb.NewReading(variable_name=name, value=value, **given)

    async def count(self) -> int:
        """How many readings are stored."""
        async with self.database.read() as connection:
            return int((await connection.execute(select(func.count()).select_from(tables.data_stream))).scalar_one())


@asynccontextmanager
async def ingest(database: Database, like: Ingest | None = None) -> AsyncIterator[Ingest]:
    """A process; with a device of its own, or beside another process, for its device."""
    set_caller(ADMIN)
    sources = Sources(database, 2)
    sightings = Sightings(database, sources)
    outbox = KeptOutbox(database, tables.outbox)
    redis: Any = Unreachable()
    readings = Readings(database, outbox, sources, sightings, redis, LatestReadings(database, redis))
    registry = Registry(database, sources.refresh, sightings)
    one = Ingest(database, registry, readings, sightings, sources)
    if like is None:
        device = await registry.create_device("Freezer", "freezer-1")
        await call(registry.sensors.CreateSensor, device="freezer-1", name="Thermometer", uuid="sensor-1")
        variable = {"variable_name": "temperature", "type": "number", "unit": "°C"}
        await call(registry.variables.CreateTelemetryData, sensor="sensor-1", **variable)
        one.token_id, one.device_id = (await registry.create_token()).id, device.id
    else:
        one.token_id, one.device_id = like.token_id, like.device_id
    stop = asyncio.Event()
    running = asyncio.create_task(readings.run(stop))
    try:
        yield one
    finally:
        stop.set()
        await running


def refusal(result: pb.WriteResult | AemosError) -> str:
    """Why a reading was refused; empty when it was not."""
    return result.refusal.reason if isinstance(result, pb.WriteResult) else result.reason
