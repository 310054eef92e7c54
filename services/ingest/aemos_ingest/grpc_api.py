"""The servicers of ingest: decode, call, encode."""

from __future__ import annotations

from aemos.v1 import (
    connectivity_pb2,
    connectivity_pb2_grpc,
    data_stream_pb2,
    data_stream_pb2_grpc,
    device_pb2,
    device_pb2_grpc,
    identity_pb2,
    identity_pb2_grpc,
    rejection_pb2,
    rejection_pb2_grpc,
    sensor_pb2,
    sensor_pb2_grpc,
    telemetry_data_pb2,
    telemetry_data_pb2_grpc,
)
from aemos_core.identity import caller
from aemos_core.paging import page_of
from aemos_core.rpc import Context, carried_trace

from aemos_ingest import codec
from aemos_ingest.connectivity import Connectivity
from aemos_ingest.history_api import queried
from aemos_ingest.history_service import History
from aemos_ingest.identity_service import Identity
from aemos_ingest.organization_service import Organizations
from aemos_ingest.readings_service import Readings
from aemos_ingest.registry_service import Registry
from aemos_ingest.rejections import Rejections
from aemos_ingest.token_service import DeviceTokens

_OVERLAP_SECONDS = 24 * 60 * 60


class IdentityServicer(identity_pb2_grpc.IdentityServiceServicer):
    """Who is who."""

    def __init__(
        self, identity: Identity, organizations: Organizations, registry: Registry, tokens: DeviceTokens
    ) -> None:
        self._identity = identity
        self._organizations = organizations
        self._registry = registry
        self._tokens = tokens

    async def CreateOrganization(
        self, request: identity_pb2.CreateOrganizationRequest, context: Context
    ) -> identity_pb2.Organization:
        created, name = await self._identity.create_organization(
            request.name, request.admin_email, request.admin_password
        )
        return identity_pb2.Organization(id=created, name=name)

    async def GetOrganization(
        self, request: identity_pb2.GetOrganizationRequest, context: Context
    ) -> identity_pb2.Organization:
        return codec.organization(await self._organizations.get())

    async def UpdateOrganization(
        self, request: identity_pb2.UpdateOrganizationRequest, context: Context
    ) -> identity_pb2.Organization:
        name = request.name if request.HasField("name") else None
        days = request.retention_days if request.HasField("retention_days") else None
        return codec.organization(await self._organizations.change(name, days))

    async def Login(self, request: identity_pb2.LoginRequest, context: Context) -> identity_pb2.LoginResponse:
        return codec.login(await self._identity.login(request.email, request.password))

    async def RefreshLogin(
        self, request: identity_pb2.RefreshLoginRequest, context: Context
    ) -> identity_pb2.LoginResponse:
        return codec.login(await self._identity.refresh(request.refresh_token))

    async def GetSigningKeys(
        self, request: identity_pb2.GetSigningKeysRequest, context: Context
    ) -> identity_pb2.GetSigningKeysResponse:
        keys = self._identity.public_keys().items()
        return identity_pb2.GetSigningKeysResponse(
            keys=[identity_pb2.SigningKey(kid=kid, public_key=key.public_bytes_raw()) for kid, key in keys]
        )

    async def ResolveDeviceTokens(
        self, request: identity_pb2.ResolveDeviceTokensRequest, context: Context
    ) -> identity_pb2.ResolveDeviceTokensResponse:
        found = await self._tokens.resolve(request.token_sha256)
        devices = [codec.device_identity(found.get(digest)) for digest in request.token_sha256]
        return identity_pb2.ResolveDeviceTokensResponse(devices=devices)

    async def ListRegistryChanges(
        self, request: identity_pb2.ListRegistryChangesRequest, context: Context
    ) -> identity_pb2.ListRegistryChangesResponse:
        device_ids, now = await self._registry.changes(request.since_ms)
        return identity_pb2.ListRegistryChangesResponse(device_ids=device_ids, now_ms=now)


class DeviceServicer(device_pb2_grpc.DeviceServiceServicer):
    """Devices and their tokens."""

    def __init__(self, registry: Registry, tokens: DeviceTokens) -> None:
        self._registry = registry
        self._tokens = tokens

    async def CreateDevice(self, request: device_pb2.CreateDeviceRequest, context: Context) -> device_pb2.Device:
        creates = request.creates_variables if request.HasField("creates_variables") else True
        attributes = codec.attributes(request.attributes)
        return codec.device(
            await self._registry.create_device(request.name, request.uuid, creates, request.labels, attributes)
        )

    async def GetDevice(self, request: device_pb2.GetDeviceRequest, context: Context) -> device_pb2.Device:
        return codec.device(await self._registry.device(request.device))

    async def ListDevices(
        self, request: device_pb2.ListDevicesRequest, context: Context
    ) -> device_pb2.ListDevicesResponse:
        rows, token = await self._registry.devices(page_of(request), request.label)
        return device_pb2.ListDevicesResponse(devices=map(codec.device, rows), next_page_token=token)

    async def UpdateDevice(self, request: device_pb2.UpdateDeviceRequest, context: Context) -> device_pb2.Device:
        changes = codec.device_changes(request)
        return codec.device(await self._registry.update_device(request.device, changes, request.labels))

    async def DeleteDevice(
        self, request: device_pb2.DeleteDeviceRequest, context: Context
    ) -> device_pb2.DeleteDeviceResponse:
        await self._registry.delete_device(request.device)
        return device_pb2.DeleteDeviceResponse()

    async def CreateDeviceToken(
        self, request: device_pb2.CreateDeviceTokenRequest, context: Context
    ) -> device_pb2.DeviceToken:
        expires_at_ms = request.expires_at.ToMilliseconds() if request.HasField("expires_at") else None
        return codec.token(*await self._tokens.create(request.device, request.name, request.sensor_uuid, expires_at_ms))

    async def ListDeviceTokens(
        self, request: device_pb2.ListDeviceTokensRequest, context: Context
    ) -> device_pb2.ListDeviceTokensResponse:
        rows, token = await self._tokens.page(request.device, page_of(request))
        return device_pb2.ListDeviceTokensResponse(tokens=map(codec.token, rows), next_page_token=token)

    async def RotateDeviceToken(
        self, request: device_pb2.RotateDeviceTokenRequest, context: Context
    ) -> device_pb2.DeviceToken:
        overlap = request.overlap_seconds if request.HasField("overlap_seconds") else _OVERLAP_SECONDS
        return codec.token(*await self._tokens.rotate(request.device, request.id, overlap))

    async def RevokeDeviceToken(
        self, request: device_pb2.RevokeDeviceTokenRequest, context: Context
    ) -> device_pb2.RevokeDeviceTokenResponse:
        await self._tokens.revoke(request.device, request.id)
        return device_pb2.RevokeDeviceTokenResponse()


class ConnectivityServicer(connectivity_pb2_grpc.ConnectivityServiceServicer):
    """Connections of devices."""

    def __init__(self, connectivity: Connectivity) -> None:
        self._connectivity = connectivity

    async def ReportConnections(
        self, request: connectivity_pb2.ReportConnectionsRequest, context: Context
    ) -> connectivity_pb2.ReportConnectionsResponse:
        return connectivity_pb2.ReportConnectionsResponse(is_new=await self._connectivity.report(request))


class RejectionServicer(rejection_pb2_grpc.RejectionServiceServicer):
    """Refused messages."""

    def __init__(self, rejections: Rejections) -> None:
        self._rejections = rejections

    async def ListRejections(
        self, request: rejection_pb2.ListRejectionsRequest, context: Context
    ) -> rejection_pb2.ListRejectionsResponse:
        rows, token, not_kept = await self._rejections.page(request.device, page_of(request))
        return rejection_pb2.ListRejectionsResponse(
            rejections=map(codec.rejection, rows), next_page_token=token, not_kept=not_kept
        )

    async def RecordRejections(
        self, request: rejection_pb2.RecordRejectionsRequest, context: Context
    ) -> rejection_pb2.RecordRejectionsResponse:
        await self._rejections.record(request)
        return rejection_pb2.RecordRejectionsResponse()


class SensorServicer(sensor_pb2_grpc.SensorServiceServicer):
    """Sensors."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def CreateSensor(self, request: sensor_pb2.CreateSensorRequest, context: Context) -> sensor_pb2.Sensor:
        return codec.sensor(await self._registry.create_sensor(request.device, request.name, request.uuid))

    async def GetSensor(self, request: sensor_pb2.GetSensorRequest, context: Context) -> sensor_pb2.Sensor:
        return codec.sensor(await self._registry.sensor(request.sensor))

    async def ListSensors(
        self, request: sensor_pb2.ListSensorsRequest, context: Context
    ) -> sensor_pb2.ListSensorsResponse:
        rows, token = await self._registry.sensors(request.device, page_of(request))
        return sensor_pb2.ListSensorsResponse(sensors=map(codec.sensor, rows), next_page_token=token)

    async def UpdateSensor(self, request: sensor_pb2.UpdateSensorRequest, context: Context) -> sensor_pb2.Sensor:
        name = request.name if request.HasField("name") else None
        return codec.sensor(await self._registry.rename_sensor(request.sensor, name))

    async def DeleteSensor(
        self, request: sensor_pb2.DeleteSensorRequest, context: Context
    ) -> sensor_pb2.DeleteSensorResponse:
        await self._registry.delete_sensor(request.sensor)
        return sensor_pb2.DeleteSensorResponse()

    async def DescribeSensors(
        self, request: sensor_pb2.DescribeSensorsRequest, context: Context
    ) -> sensor_pb2.DescribeSensorsResponse:
        found = await self._registry.describe_sensors(request.organization_id, request.sensor_uuids)
        return sensor_pb2.DescribeSensorsResponse(
            sensors=[
                sensor_pb2.SensorDescription(sensor_uuid=uuid, variable_types=types) for uuid, types in found.items()
            ]
        )


class TelemetryDataServicer(telemetry_data_pb2_grpc.TelemetryDataServiceServicer):
    """Variables."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def CreateTelemetryData(
        self, request: telemetry_data_pb2.CreateTelemetryDataRequest, context: Context
    ) -> telemetry_data_pb2.TelemetryData:
        row = await self._registry.create_variable(
            request.sensor, request.variable_name, request.type or "number", request.unit
        )
        return codec.variable(row)

    async def GetTelemetryData(
        self, request: telemetry_data_pb2.GetTelemetryDataRequest, context: Context
    ) -> telemetry_data_pb2.TelemetryData:
        return codec.variable(await self._registry.variable(request.id))

    async def ListTelemetryData(
        self, request: telemetry_data_pb2.ListTelemetryDataRequest, context: Context
    ) -> telemetry_data_pb2.ListTelemetryDataResponse:
        rows, token = await self._registry.variables(request.sensor, page_of(request))
        return telemetry_data_pb2.ListTelemetryDataResponse(
            telemetry_data=map(codec.variable, rows), next_page_token=token
        )

    async def DeleteTelemetryData(
        self, request: telemetry_data_pb2.DeleteTelemetryDataRequest, context: Context
    ) -> telemetry_data_pb2.DeleteTelemetryDataResponse:
        await self._registry.delete_variable(request.id)
        return telemetry_data_pb2.DeleteTelemetryDataResponse()


class DataStreamServicer(data_stream_pb2_grpc.DataStreamServiceServicer):
    """Readings."""

    def __init__(self, readings: Readings, history: History) -> None:
        self._readings = readings
        self._history = history

    async def WriteReadings(
        self, request: data_stream_pb2.WriteReadingsRequest, context: Context
    ) -> data_stream_pb2.WriteReadingsResponse:
        outcomes = await self._readings.write(request.readings, carried_trace(context))
        return data_stream_pb2.WriteReadingsResponse(results=map(codec.write_result, outcomes))

    async def QueryReadings(
        self, request: data_stream_pb2.QueryReadingsRequest, context: Context
    ) -> data_stream_pb2.QueryReadingsResponse:
        return await queried(self._history, caller().organization_id, request)
