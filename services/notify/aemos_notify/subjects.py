"""Whose rooms a client may be in: what it names, looked up as the client, so that what is another's does not exist."""

from __future__ import annotations

import grpc
from aemos.v1 import device_pb2_grpc, rule_chain_pb2_grpc, sensor_pb2_grpc
from aemos.v1.device_pb2 import GetDeviceRequest
from aemos.v1.rule_chain_pb2 import GetRuleChainRequest
from aemos.v1.sensor_pb2 import GetSensorRequest
from aemos_core.errors import not_found
from aemos_core.identity import caller
from aemos_core.names import (
    alarms_room,
    device_id_room,
    device_room,
    organization_room,
    rule_chain_room,
    sensor_room,
)

from aemos_notify.domain import Subject, Wanted


class Subjects:
    """Finds subjects with calls to their owners, in the name of the caller; NOT_FOUND."""

    def __init__(self, ingest: grpc.aio.Channel, rules: grpc.aio.Channel) -> None:
        self._devices = device_pb2_grpc.DeviceServiceStub(ingest)
        self._sensors = sensor_pb2_grpc.SensorServiceStub(ingest)
        self._chains = rule_chain_pb2_grpc.RuleChainServiceStub(rules)

    async def find(self, wanted: Wanted) -> Subject:
        """What the caller wants."""
        organization_id = caller().organization_id
        names = frozenset([wanted.name])
        match wanted.kind:
            case "deviceUuid" | "deviceId":
                return await self._device(wanted.value)
            case "sensorUuid":
                sensor = await self._sensors.GetSensor(GetSensorRequest(sensor=str(wanted.value)))
                if sensor.uuid != wanted.value:  # digits are a possible uuid, and found as an id
                    raise not_found("sensor")
                return Subject(names, (sensor_room(sensor.uuid),), sensor_room(sensor.uuid))
            case "ruleChainId":
                chain = await self._chains.GetRuleChain(GetRuleChainRequest(id=int(wanted.value)))
                return Subject(names, (rule_chain_room(chain.id),))
            case "organizationId" if wanted.value != organization_id:
                raise not_found("organization")
        room = alarms_room if wanted.kind == "alarms" else organization_room
        return Subject(names, (room(organization_id),))

    async def _device(self, named: str | int) -> Subject:
        device = await self._devices.GetDevice(GetDeviceRequest(device=str(named)))
        # An id is looked up like a uuid, and digits are a possible uuid: only what was asked for is an answer.
        if named not in (device.id, device.uuid):
            raise not_found("device")
        names: list[tuple[str, str | int]] = [("deviceUuid", device.uuid), ("deviceId", device.id)]
        return Subject(
            frozenset(names), (device_room(device.uuid), device_id_room(device.id)), device_room(device.uuid)
        )
