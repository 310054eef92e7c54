"""What tests of stored readings share: two organizations with their sensors, and rows of readings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aemos.v1 import data_stream_pb2, history_pb2
from aemos_core.database import Database
from aemos_core.identity import Caller, set_caller
from aemos_core.redis_link import RedisClient
from aemos_core.times import to_timestamp
from aemos_ingest import tables
from aemos_ingest.history_service import History
from aemos_ingest.latest import LatestReadings
from sqlalchemy import insert

Reading = dict[str, Any]


@dataclass
class World:
    """Organization 1 with sensors "s1" (temperature, note) and "s2" (temperature), and organization 2 with "s3"."""

    database: Database
    redis: RedisClient
    latest: LatestReadings
    history: History

    async def add(self, table: Any, rows: Sequence[Reading]) -> None:
        async with self.database.write() as connection:
            for begin in range(0, len(rows), 1_000):
                await connection.execute(insert(table), rows[begin : begin + 1_000])

    async def store(self, *rows: Reading, told: bool = True) -> None:
        """As a commit does; not `told` as one that died before it said so."""
        await self.add(tables.data_stream, rows)
        if told:
            self.latest.committed(
                (row["telemetry_data_id"], row["received_at_ms"], row["id"], row["value"], None, None) for row in rows
            )
            await self.latest.drain()

    async def newest(self, *sensors: str) -> dict[tuple[str, str], str]:
        return await newest(self.history, *sensors)


async def newest(history: History, *sensors: str) -> dict[tuple[str, str], str]:
    """Latest values by sensor and variable."""
    set_caller(Caller(1, 1, "viewer"))
    request = history_pb2.GetLatestReadingsRequest(sensor_uuid=sensors)
    found = await history.GetLatestReadings(request, None)  # type: ignore[arg-type]
    return {(reading.sensor_uuid, reading.variable_name): reading.value for reading in found.readings}


def asked(
    sensors: Sequence[str], names: Sequence[str], from_ms: int, to_ms: int, **fields: Any
) -> data_stream_pb2.QueryReadingsRequest:
    """A question for what was in [from, to)."""
    between = {"from": to_timestamp(from_ms), "to": to_timestamp(to_ms)}
    return data_stream_pb2.QueryReadingsRequest(sensor_uuid=sensors, variable_name=names, **between, **fields)


async def made_world(database: Database, redis: RedisClient) -> World:
    """Both organizations, with nothing stored."""
    latest = LatestReadings(database, redis)
    made = World(database, redis, latest, History(database, database, latest))
    await made.add(tables.organization, [{"id": n, "name": f"o{n}", "created_at_ms": 0} for n in (1, 2)])
    common = {"created_at_ms": 0, "name": "x"}
    await made.add(
        tables.device, [{"id": n, "uuid": f"d{n}", "organization_id": 1 + n // 3, **common} for n in (1, 2, 3)]
    )
    await made.add(
        tables.sensor,
        [{"id": n, "device_id": n, "uuid": f"s{n}", "organization_id": 1 + n // 3, **common} for n in (1, 2, 3)],
    )
    variables = ((1, 1, "temperature", "number"), (2, 2, "temperature", "number"), (3, 3, "temperature", "number"))
    await made.add(
        tables.telemetry_data,
        [
            {
                "id": v,
                "sensor_id": s,
                "variable_name": name,
                "type": kind,
                "unit": "",
                "organization_id": 1 + s // 3,
            }
            for v, s, name, kind in (*variables, (4, 1, "note", "text"))
        ],
    )
    return made


def row(reading_id: int, ms: int, variable_id: int = 1, value: float | str = 1.5) -> Reading:
    number = value if isinstance(value, float) else None
    return {
        "telemetry_data_id": variable_id,
        "received_at_ms": ms,
        "id": reading_id,
        "value": str(value),
        "number": number,
    }
