"""The servicers of the registry and of readings: decode, call, encode. Others are in `connectivity.py`,
`rejections.py` and `history_service.py`, beside what they do."""

from __future__ import annotations

from aemos.v1 import data_stream_pb2 as data_pb
from aemos.v1 import (
    data_stream_pb2_grpc,
    device_pb2_grpc,
    identity_pb2_grpc,
    sensor_pb2_grpc,
    telemetry_data_pb2_grpc,
)
from aemos.v1 import device_pb2 as device_pb
from aemos.v1 import identity_pb2 as id_pb
from aemos.v1 import sensor_pb2 as sensor_pb
from aemos.v1 import telemetry_data_pb2 as variable_pb
from aemos_core.identity import caller
from aemos_core.paging import page_of
from aemos_core.rpc import Context, carried_trace

from aemos_ingest import codec
from aemos_ingest.history_service import History
from aemos_ingest.identity_service import Identity
from aemos_ingest.readings_service import Readings
from aemos_ingest.registry_service import Registry
from aemos_ingest.registry_store import DEVICE, SENSOR, TOKEN, VARIABLE

_OVERLAP_SECONDS = 24 * 60 * 60


class IdentityServicer(identity_pb2_grpc.IdentityServiceServicer):
    """Who is who."""

    def __init__(self, identity: Identity, registry: Registry) -> None:
        self._identity = identity
        self._registry = registry

    async def CreateOrganization(
        self, request: id_pb.CreateOrganizationRequest, context: Context
    ) -> id_pb.Organization:
        admin = request.admin_email, request.admin_password
        created, name = await self._identity.create_organization(request.name, *admin)
        return id_pb.Organization(id=created, name=name)

    async def GetOrganization(self, request: id_pb.GetOrganizationRequest, context: Context) -> id_pb.Organization:
        return codec.organization(await self._identity.organization())

    async def UpdateOrganization(
        self, request: id_pb.UpdateOrganizationRequest, context: Context
    ) -> id_pb.Organization:
        name = request.name if request.HasField("name") else None
        days = request.retention_days if request.HasField("retention_days") else None
        return codec.organization(await self._identity.change_organization(name, days))

    async def Login(self, request: id_pb.LoginRequest, context: Context) -> id_pb.LoginResponse:
        return await self._identity.login(request.email, request.password)

    async def RefreshLogin(self, request: id_pb.RefreshLoginRequest, context: Context) -> id_pb.LoginResponse:
        return await self._identity.refresh(request.refresh_token)

    async def GetSigningKeys(
        self, request: id_pb.GetSigningKeysRequest, context: Context
    ) -> id_pb.GetSigningKeysResponse:
        keys = self._identity.public_keys().items()
        return id_pb.GetSigningKeysResponse(
            keys=[id_pb.SigningKey(kid=kid, public_key=key.public_bytes_raw()) for kid, key in keys]
        )

    async def ResolveDeviceTokens(
        self, request: id_pb.ResolveDeviceTokensRequest, context: Context
    ) -> id_pb.ResolveDeviceTokensResponse:
        found = await self._registry.resolve_tokens(request.token_sha256)
        devices = [codec.device_identity(found.get(digest)) for digest in request.token_sha256]
        return id_pb.ResolveDeviceTokensResponse(devices=devices)

    async def ListRegistryChanges(
        self, request: id_pb.ListRegistryChangesRequest, context: Context
    ) -> id_pb.ListRegistryChangesResponse:
        device_ids, now = await self._registry.changes(request.since_ms)
        return id_pb.ListRegistryChangesResponse(device_ids=device_ids, now_ms=now)


class DeviceServicer(device_pb2_grpc.DeviceServiceServicer):
    """Devices and their tokens."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def CreateDevice(self, request: device_pb.CreateDeviceRequest, context: Context) -> device_pb.Device:
        creates = request.creates_variables if request.HasField("creates_variables") else True
        attributes = codec.attributes(request.attributes)
        return codec.device(
            await self._registry.create_device(request.name, request.uuid, creates, request.labels, attributes)
        )

    async def GetDevice(self, request: device_pb.GetDeviceRequest, context: Context) -> device_pb.Device:
        return codec.device(await self._registry.get(DEVICE, request.device))

    async def ListDevices(
        self, request: device_pb.ListDevicesRequest, context: Context
    ) -> device_pb.ListDevicesResponse:
        rows, token = await self._registry.page(DEVICE, page_of(request), label=request.label)
        return device_pb.ListDevicesResponse(devices=map(codec.device, rows), next_page_token=token)

    async def UpdateDevice(self, request: device_pb.UpdateDeviceRequest, context: Context) -> device_pb.Device:
        changes = codec.device_changes(request)
        return codec.device(await self._registry.update_device(request.device, changes, request.labels))

    async def DeleteDevice(
        self, request: device_pb.DeleteDeviceRequest, context: Context
    ) -> device_pb.DeleteDeviceResponse:
        await self._registry.delete(DEVICE, request.device)
        return device_pb.DeleteDeviceResponse()

    async def CreateDeviceToken(
        self, request: device_pb.CreateDeviceTokenRequest, context: Context
    ) -> device_pb.DeviceToken:
        expires_at_ms = request.expires_at.ToMilliseconds() if request.HasField("expires_at") else None
        return codec.token(
            *await self._registry.create_token(request.device, request.name, request.sensor_uuid, expires_at_ms)
        )

    async def ListDeviceTokens(
        self, request: device_pb.ListDeviceTokensRequest, context: Context
    ) -> device_pb.ListDeviceTokensResponse:
        rows, token = await self._registry.page(TOKEN, page_of(request), request.device)
        return device_pb.ListDeviceTokensResponse(tokens=map(codec.token, rows), next_page_token=token)

    async def RotateDeviceToken(
        self, request: device_pb.RotateDeviceTokenRequest, context: Context
    ) -> device_pb.DeviceToken:
        overlap = request.overlap_seconds if request.HasField("overlap_seconds") else _OVERLAP_SECONDS
        return codec.token(*await self._registry.rotate_token(request.device, request.id, overlap))

    async def RevokeDeviceToken(
        self, request: device_pb.RevokeDeviceTokenRequest, context: Context
    ) -> device_pb.RevokeDeviceTokenResponse:
        await self._registry.revoke_token(request.device, request.id)
        return device_pb.RevokeDeviceTokenResponse()


class SensorServicer(sensor_pb2_grpc.SensorServiceServicer):
    """Sensors."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def CreateSensor(self, request: sensor_pb.CreateSensorRequest, context: Context) -> sensor_pb.Sensor:
        return codec.sensor(await self._registry.create_sensor(request.device, request.name, request.uuid))

    async def GetSensor(self, request: sensor_pb.GetSensorRequest, context: Context) -> sensor_pb.Sensor:
        return codec.sensor(await self._registry.get(SENSOR, request.sensor))

    async def ListSensors(
        self, request: sensor_pb.ListSensorsRequest, context: Context
    ) -> sensor_pb.ListSensorsResponse:
        rows, token = await self._registry.page(SENSOR, page_of(request), request.device or None)
        return sensor_pb.ListSensorsResponse(sensors=map(codec.sensor, rows), next_page_token=token)

    async def UpdateSensor(self, request: sensor_pb.UpdateSensorRequest, context: Context) -> sensor_pb.Sensor:
        name = request.name if request.HasField("name") else None
        return codec.sensor(await self._registry.rename_sensor(request.sensor, name))

    async def DeleteSensor(
        self, request: sensor_pb.DeleteSensorRequest, context: Context
    ) -> sensor_pb.DeleteSensorResponse:
        await self._registry.delete(SENSOR, request.sensor)
        return sensor_pb.DeleteSensorResponse()

    async def DescribeSensors(
        self, request: sensor_pb.DescribeSensorsRequest, context: Context
    ) -> sensor_pb.DescribeSensorsResponse:
        found = await self._registry.describe_sensors(request.organization_id, request.sensor_uuids)
        sensors = [sensor_pb.SensorDescription(sensor_uuid=one, variable_types=types) for one, types in found.items()]
        return sensor_pb.DescribeSensorsResponse(sensors=sensors)


class TelemetryDataServicer(telemetry_data_pb2_grpc.TelemetryDataServiceServicer):
    """Variables."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def CreateTelemetryData(
        self, request: variable_pb.CreateTelemetryDataRequest, context: Context
    ) -> variable_pb.TelemetryData:
        kind = request.type or "number"
        return codec.variable(
            await self._registry.create_variable(request.sensor, request.variable_name, kind, request.unit)
        )

    async def GetTelemetryData(
        self, request: variable_pb.GetTelemetryDataRequest, context: Context
    ) -> variable_pb.TelemetryData:
        return codec.variable(await self._registry.get(VARIABLE, str(request.id)))

    async def ListTelemetryData(
        self, request: variable_pb.ListTelemetryDataRequest, context: Context
    ) -> variable_pb.ListTelemetryDataResponse:
        rows, token = await self._registry.page(VARIABLE, page_of(request), request.sensor or None)
        return variable_pb.ListTelemetryDataResponse(telemetry_data=map(codec.variable, rows), next_page_token=token)

    async def DeleteTelemetryData(
        self, request: variable_pb.DeleteTelemetryDataRequest, context: Context
    ) -> variable_pb.DeleteTelemetryDataResponse:
        await self._registry.delete(VARIABLE, str(request.id))
        return variable_pb.DeleteTelemetryDataResponse()


class DataStreamServicer(data_stream_pb2_grpc.DataStreamServiceServicer):
    """Readings."""

    def __init__(self, readings: Readings, history: History) -> None:
        self._readings = readings
        self._history = history

    async def WriteReadings(
        self, request: data_pb.WriteReadingsRequest, context: Context
    ) -> data_pb.WriteReadingsResponse:
        outcomes = await self._readings.write(request.readings, carried_trace(context))
        return data_pb.WriteReadingsResponse(results=map(codec.write_result, outcomes))

    async def QueryReadings(
        self, request: data_pb.QueryReadingsRequest, context: Context
    ) -> data_pb.QueryReadingsResponse:
        return await self._history.query(caller().organization_id, request)
