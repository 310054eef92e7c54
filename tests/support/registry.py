"""The calls of ingest's registry, without a network between."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any

from aemos.v1 import device_pb2 as pb
from aemos_core.contract import methods
from aemos_core.database import Database
from aemos_ingest.identity_api import IdentityServicer
from aemos_ingest.registry_api import DeviceServicer, SensorServicer, TelemetryDataServicer
from aemos_ingest.sightings import Sightings

DEVICE = "freezer-1"
_REQUESTS = {method.name: method.request for method in methods().values()}


async def call(method: Any, **fields: Any) -> Any:
    """What a servicer's method answers to a request with these fields."""
    return await method(_REQUESTS[method.__name__](**fields), None)


class Registry:
    """Its servicers, and the calls that many tests make; a device is the freezer when it is not named."""

    def __init__(self, database: Database, announce: Callable[[], Awaitable[None]], sightings: Sightings) -> None:
        self._database = database
        self._sightings = sightings
        self.devices = DeviceServicer(database, announce)
        self.sensors = SensorServicer(database, announce)
        self.variables = TelemetryDataServicer(database, announce)

    @cached_property
    def identity(self) -> IdentityServicer:
        """Not before it is asked for: it begins with a password's hash, which takes a while."""
        return IdentityServicer(self._database, self._sightings)

    async def device(self, device: str = DEVICE) -> pb.Device:
        found: pb.Device = await call(self.devices.GetDevice, device=device)
        return found

    async def create_device(self, name: str, uuid: str, **fields: Any) -> pb.Device:
        made: pb.Device = await call(self.devices.CreateDevice, name=name, uuid=uuid, **fields)
        return made

    async def create_token(self, name: str = "t", **fields: Any) -> pb.DeviceToken:
        made: pb.DeviceToken = await call(self.devices.CreateDeviceToken, device=DEVICE, name=name, **fields)
        return made

    async def rotate_token(self, token_id: int, overlap_seconds: int) -> pb.DeviceToken:
        fields = {"device": DEVICE, "id": token_id, "overlap_seconds": overlap_seconds}
        made: pb.DeviceToken = await call(self.devices.RotateDeviceToken, **fields)
        return made

    async def revoke_token(self, token_id: int) -> None:
        await call(self.devices.RevokeDeviceToken, device=DEVICE, id=token_id)

    async def tokens(self, **fields: Any) -> list[pb.DeviceToken]:
        return list((await call(self.devices.ListDeviceTokens, device=DEVICE, **fields)).tokens)

    async def variables_of(self, sensor: str) -> list[tuple[str, str]]:
        """Names and types."""
        listed = await call(self.variables.ListTelemetryData, sensor=sensor)
        return [(one.variable_name, one.type) for one in listed.telemetry_data]
