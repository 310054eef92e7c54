"""DeviceStateService of the contract: what users do with the device states of their organization."""

from __future__ import annotations

from aemos.v1 import device_pb2, device_pb2_grpc, device_state_pb2_grpc
from aemos.v1 import device_state_pb2 as pb
from aemos_core import telemetry
from aemos_core.announcements import outbox_row
from aemos_core.database import Database
from aemos_core.errors import invalid
from aemos_core.identity import caller
from aemos_core.outbox import OutboxRows
from aemos_core.paging import page_of
from aemos_core.records import listed, message, own
from aemos_core.rpc import Context
from aemos_core.times import now_ms, to_timestamp
from sqlalchemy import select

from aemos_rules import state_store
from aemos_rules import tables as t
from aemos_rules.announcements import state_change
from aemos_rules.domain import StateRow
from aemos_rules.state_store import Instance

_MOST = 200


class DeviceStateServicer(device_state_pb2_grpc.DeviceStateServiceServicer):
    """Device states."""

    def __init__(self, database: Database, outbox: OutboxRows, devices: device_pb2_grpc.DeviceServiceAsyncStub) -> None:
        self._database = database
        self._outbox = outbox
        self._devices = devices

    async def CreateDeviceState(self, request: pb.CreateDeviceStateRequest, context: Context) -> pb.DeviceState:
        """EXISTS when the device has one of that name."""
        if not 0 < len(request.name) <= _MOST:
            raise invalid("name", f"must have 1 to {_MOST} characters")
        _check_value("defaultValue", request.default_value)
        owner = await self._devices.GetDevice(device_pb2.GetDeviceRequest(device=request.device))
        values = {
            "organization_id": caller().organization_id,
            "device_id": owner.id,
            "device_uuid": owner.uuid,
            "name": request.name,
            "default_value": request.default_value,
        }
        async with self._database.write() as connection:
            state_id = await state_store.create(connection, values)
            return message(pb.DeviceState, await own(connection, t.device_state, state_id))

    async def GetDeviceState(self, request: pb.GetDeviceStateRequest, context: Context) -> pb.DeviceState:
        async with self._database.read() as connection:
            return message(pb.DeviceState, await own(connection, t.device_state, request.id))

    async def ListDeviceStates(
        self, request: pb.ListDeviceStatesRequest, context: Context
    ) -> pb.ListDeviceStatesResponse:
        of = t.device_state.c
        query = select(t.device_state).where(of.organization_id == caller().organization_id)
        if request.device_uuid:
            query = query.where(of.device_uuid == request.device_uuid)
        async with self._database.read() as connection:
            rows, token = await listed(connection, query, of.id, page_of(request))
        states = [message(pb.DeviceState, row) for row in rows]
        return pb.ListDeviceStatesResponse(device_states=states, next_page_token=token)

    async def SetDeviceState(self, request: pb.SetDeviceStateRequest, context: Context) -> pb.DeviceState:
        """As of now, whatever a reading from the future said; an equal value announces nothing."""
        _check_value("value", request.value)
        rows = []
        async with self._database.write() as connection:
            state = await own(connection, t.device_state, request.id, lock=True)
            if state.value != request.value:
                at = now_ms()
                mark = (max(at, state.asserted_at_ms + 1), 0, 0)
                change = Instance(state.id, state.value, request.value, at, user_id=caller().user_id)
                await state_store.change(connection, [StateRow(state.id, request.value, mark)], [change])
                told = state_change(state, state.value, request.value, telemetry.current())
                rows = await self._outbox.add(connection, [outbox_row([told])])
            after = await own(connection, t.device_state, request.id)
        self._outbox.committed(rows)
        return message(pb.DeviceState, after)

    async def DeleteDeviceState(
        self, request: pb.DeleteDeviceStateRequest, context: Context
    ) -> pb.DeleteDeviceStateResponse:
        async with self._database.write() as connection:
            await own(connection, t.device_state, request.id, lock=True)
            await state_store.remove(connection, request.id)
        return pb.DeleteDeviceStateResponse()

    async def ListDeviceStateInstances(
        self, request: pb.ListDeviceStateInstancesRequest, context: Context
    ) -> pb.ListDeviceStateInstancesResponse:
        of = t.device_state_instance.c
        query = select(t.device_state_instance).where(of.device_state_id == request.device_state_id)
        async with self._database.read() as connection:
            await own(connection, t.device_state, request.device_state_id)
            rows, token = await listed(connection, query, of.id, page_of(request), newest_first=True)
        changes = [message(pb.DeviceStateInstance, row, timestamp=to_timestamp(row.at_ms)) for row in rows]
        return pb.ListDeviceStateInstancesResponse(device_state_instances=changes, next_page_token=token)


def _check_value(loc: str, value: str) -> None:
    if len(value) > _MOST:
        raise invalid(loc, f"must have at most {_MOST} characters")
