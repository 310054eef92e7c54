"""The servicers of the registry: devices with their tokens, sensors and variables of the caller's organization."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from aemos.v1 import device_pb2 as device_pb
from aemos.v1 import device_pb2_grpc, sensor_pb2_grpc, telemetry_data_pb2_grpc
from aemos.v1 import sensor_pb2 as sensor_pb
from aemos.v1 import telemetry_data_pb2 as variable_pb
from aemos_core.database import Database
from aemos_core.errors import AemosError, Kind, invalid
from aemos_core.identity import caller
from aemos_core.paging import PageRequest, page_of
from aemos_core.rpc import Context
from aemos_core.times import now_ms
from sqlalchemy import ColumnElement
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_ingest import codec
from aemos_ingest import registry_store as store
from aemos_ingest import tables as t
from aemos_ingest.domain import TYPES, check_name, check_uuid, check_variable_name
from aemos_ingest.labels import merged_labels
from aemos_ingest.registry_store import DEVICE, SENSOR, TOKEN, VARIABLE, AnyRow, Entity, Listed

MOST_OVERLAP_SECONDS = 30 * 24 * 60 * 60
_OVERLAP_SECONDS = 24 * 60 * 60
_LATEST_MS = 253_402_300_799_999
"""The end of 9999, which is how some say "never": no message has a later time."""


class _Registry:
    """What somebody may keep a copy of is told, by `announce`, after the commit of its change."""

    def __init__(self, database: Database, announce: Callable[[], Awaitable[None]]) -> None:
        self._database = database
        self._announce = announce

    async def _read(self, entity: Entity, reference: str) -> AnyRow:
        async with self._database.read() as connection:
            return await _get(connection, entity, reference)

    async def _page(self, entity: Entity, request: PageRequest, parent: str | None = None, label: str = "") -> Listed:
        page = page_of(request)
        async with self._database.read() as connection:
            return await store.listed(connection, entity, caller().organization_id, page, parent, label)

    async def _delete(self, entity: Entity, reference: str) -> None:
        """With all that hangs on it: sensors, variables and the tokens bound to it."""
        async with self._changing() as connection:
            await store.remove(connection, entity, await _get(connection, entity, reference))

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that is announced after its commit."""
        async with self._database.write() as connection:
            yield connection
        await self._announce()


class DeviceServicer(_Registry, device_pb2_grpc.DeviceServiceServicer):
    """Devices and their tokens."""

    async def CreateDevice(self, request: device_pb.CreateDeviceRequest, context: Context) -> device_pb.Device:
        values = {
            "attributes": codec.attributes(request.attributes),
            "uuid": check_uuid("uuid", request.uuid or str(uuid4())),
            "name": check_name("name", request.name),
            "creates_variables": request.creates_variables if request.HasField("creates_variables") else True,
            "labels": merged_labels(None, request.labels),
        }
        async with self._database.write() as connection:
            return codec.device(await _add(connection, DEVICE, values))

    async def GetDevice(self, request: device_pb.GetDeviceRequest, context: Context) -> device_pb.Device:
        return codec.device(await self._read(DEVICE, request.device))

    async def ListDevices(
        self, request: device_pb.ListDevicesRequest, context: Context
    ) -> device_pb.ListDevicesResponse:
        rows, token = await self._page(DEVICE, request, label=request.label)
        return device_pb.ListDevicesResponse(devices=map(codec.device, rows), next_page_token=token)

    async def UpdateDevice(self, request: device_pb.UpdateDeviceRequest, context: Context) -> device_pb.Device:
        """Changes what is given, and of the labels those that are: an empty value removes one."""
        values = codec.device_changes(request)
        if "name" in values:
            check_name("name", values["name"])
        async with self._changing() as connection:
            found = await _get(connection, DEVICE, request.device, lock=True)
            if request.labels:
                values["labels"] = merged_labels(found.labels, request.labels)
            return codec.device(await store.change(connection, DEVICE, found, values) if values else found)

    async def DeleteDevice(
        self, request: device_pb.DeleteDeviceRequest, context: Context
    ) -> device_pb.DeleteDeviceResponse:
        await self._delete(DEVICE, request.device)
        return device_pb.DeleteDeviceResponse()

    async def CreateDeviceToken(
        self, request: device_pb.CreateDeviceTokenRequest, context: Context
    ) -> device_pb.DeviceToken:
        expires_at_ms = codec.time_ms(request, "expires_at")
        if expires_at_ms is not None and expires_at_ms <= now_ms():
            raise invalid("expiresAt", "must be in the future")
        async with self._database.write() as connection:
            owner = await _get(connection, DEVICE, request.device)
            sensor = await _get(connection, SENSOR, request.sensor_uuid) if request.sensor_uuid else None
            if sensor is not None and sensor.device_id != owner.id:
                raise invalid("sensorUuid", "is no sensor of this device")
            name = check_name("name", request.name)
            return await _add_token(connection, owner.id, sensor and sensor.id, name, expires_at_ms)

    async def ListDeviceTokens(
        self, request: device_pb.ListDeviceTokensRequest, context: Context
    ) -> device_pb.ListDeviceTokensResponse:
        rows, token = await self._page(TOKEN, request, request.device)
        return device_pb.ListDeviceTokensResponse(tokens=map(codec.token, rows), next_page_token=token)

    async def RotateDeviceToken(
        self, request: device_pb.RotateDeviceTokenRequest, context: Context
    ) -> device_pb.DeviceToken:
        overlap = request.overlap_seconds if request.HasField("overlap_seconds") else _OVERLAP_SECONDS
        if not 0 <= overlap <= MOST_OVERLAP_SECONDS:
            raise invalid("overlapSeconds", f"must be 0 to {MOST_OVERLAP_SECONDS}")
        now = now_ms()
        async with self._changing() as connection:
            old = await _get_token(connection, request.device, request.id)
            if old.revoked_at_ms is not None or (old.expires_at_ms or now + 1) <= now:
                raise AemosError(Kind.STALE, "the token is no longer valid")
            expires = old.lifetime_ms and min(now + old.lifetime_ms, _LATEST_MS)
            made = await _add_token(connection, old.device_id, old.sensor_id, old.name, expires)
            end = now + overlap * 1000
            lives_on = {"expires_at_ms": min(end, old.expires_at_ms or end)}
            await store.change(connection, TOKEN, old, lives_on if overlap else {"revoked_at_ms": now}, "rotate")
            return made

    async def RevokeDeviceToken(
        self, request: device_pb.RevokeDeviceTokenRequest, context: Context
    ) -> device_pb.RevokeDeviceTokenResponse:
        async with self._changing() as connection:
            found = await _get_token(connection, request.device, request.id)
            if found.revoked_at_ms is None:
                await store.change(connection, TOKEN, found, {"revoked_at_ms": now_ms()}, "revoke")
        return device_pb.RevokeDeviceTokenResponse()


class SensorServicer(_Registry, sensor_pb2_grpc.SensorServiceServicer):
    """Sensors."""

    async def CreateSensor(self, request: sensor_pb.CreateSensorRequest, context: Context) -> sensor_pb.Sensor:
        uuid = check_uuid("uuid", request.uuid or str(uuid4()))
        async with self._changing() as connection:
            owner = await _get(connection, DEVICE, request.device)
            values = {"device_id": owner.id, "uuid": uuid, "name": check_name("name", request.name)}
            return codec.sensor(await _add(connection, SENSOR, values))

    async def GetSensor(self, request: sensor_pb.GetSensorRequest, context: Context) -> sensor_pb.Sensor:
        return codec.sensor(await self._read(SENSOR, request.sensor))

    async def ListSensors(
        self, request: sensor_pb.ListSensorsRequest, context: Context
    ) -> sensor_pb.ListSensorsResponse:
        rows, token = await self._page(SENSOR, request, request.device or None)
        return sensor_pb.ListSensorsResponse(sensors=map(codec.sensor, rows), next_page_token=token)

    async def UpdateSensor(self, request: sensor_pb.UpdateSensorRequest, context: Context) -> sensor_pb.Sensor:
        async with self._database.write() as connection:
            found = await _get(connection, SENSOR, request.sensor)
            if request.HasField("name"):
                found = await store.change(connection, SENSOR, found, {"name": check_name("name", request.name)})
        return codec.sensor(found)

    async def DeleteSensor(
        self, request: sensor_pb.DeleteSensorRequest, context: Context
    ) -> sensor_pb.DeleteSensorResponse:
        await self._delete(SENSOR, request.sensor)
        return sensor_pb.DeleteSensorResponse()

    async def DescribeSensors(
        self, request: sensor_pb.DescribeSensorsRequest, context: Context
    ) -> sensor_pb.DescribeSensorsResponse:
        c, described = t.sensor.c, dict[str, sensor_pb.SensorDescription]()
        named = c.organization_id == request.organization_id, c.uuid.in_(request.sensor_uuids)
        async with self._database.read() as connection:
            rows = await store.variables_of(connection, *named)
        for row in rows:
            one = described.setdefault(row.sensor_uuid, sensor_pb.SensorDescription(sensor_uuid=row.sensor_uuid))
            if row.id is not None:
                one.variable_types[row.variable_name] = row.type
        return sensor_pb.DescribeSensorsResponse(sensors=described.values())


class TelemetryDataServicer(_Registry, telemetry_data_pb2_grpc.TelemetryDataServiceServicer):
    """Variables."""

    async def CreateTelemetryData(
        self, request: variable_pb.CreateTelemetryDataRequest, context: Context
    ) -> variable_pb.TelemetryData:
        values: dict[str, Any] = {"type": request.type or "number", "unit": request.unit}
        if values["type"] not in TYPES:
            raise invalid("type", f"must be one of {', '.join(TYPES)}")
        if len(request.unit) > 40:
            raise invalid("unit", "must have at most 40 characters")
        async with self._changing() as connection:
            owner = await _get(connection, SENSOR, request.sensor)
            name = check_variable_name("variableName", request.variable_name)
            values |= {"sensor_id": owner.id, "variable_name": name}
            return codec.variable(await _add(connection, VARIABLE, values))

    async def GetTelemetryData(
        self, request: variable_pb.GetTelemetryDataRequest, context: Context
    ) -> variable_pb.TelemetryData:
        return codec.variable(await self._read(VARIABLE, str(request.id)))

    async def ListTelemetryData(
        self, request: variable_pb.ListTelemetryDataRequest, context: Context
    ) -> variable_pb.ListTelemetryDataResponse:
        rows, token = await self._page(VARIABLE, request, request.sensor or None)
        return variable_pb.ListTelemetryDataResponse(telemetry_data=map(codec.variable, rows), next_page_token=token)

    async def DeleteTelemetryData(
        self, request: variable_pb.DeleteTelemetryDataRequest, context: Context
    ) -> variable_pb.DeleteTelemetryDataResponse:
        await self._delete(VARIABLE, str(request.id))
        return variable_pb.DeleteTelemetryDataResponse()


async def _get(
    connection: AsyncConnection, entity: Entity, reference: str, *conditions: ColumnElement[bool], lock: bool = False
) -> AnyRow:
    return await store.get(connection, entity, caller().organization_id, reference, *conditions, lock=lock)


async def _get_token(connection: AsyncConnection, device: str, token_id: int) -> AnyRow:
    owner = await _get(connection, DEVICE, device)
    return await _get(connection, TOKEN, str(token_id), t.device_token.c.device_id == owner.id, lock=True)


async def _add(connection: AsyncConnection, entity: Entity, values: dict[str, Any]) -> AnyRow:
    return await store.add(connection, entity, caller().organization_id, values)


async def _add_token(
    connection: AsyncConnection, device_id: int, sensor_id: int | None, name: str, expires_at_ms: int | None
) -> device_pb.DeviceToken:
    """With its secret, which is shown this once."""
    secret = secrets.token_urlsafe(24)
    values = {"device_id": device_id, "sensor_id": sensor_id, "name": name, "expires_at_ms": expires_at_ms}
    values["lifetime_ms"] = expires_at_ms and expires_at_ms - now_ms()
    digest = hashlib.sha256(secret.encode()).digest()
    return codec.token(await _add(connection, TOKEN, {**values, "token_sha256": digest}), secret)
