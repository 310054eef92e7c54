"""Use cases of device states: what users do with them."""

from __future__ import annotations

from collections.abc import Sequence

from aemos.v1 import device_pb2, device_pb2_grpc
from aemos_core import telemetry
from aemos_core.announcements import outbox_row
from aemos_core.database import Database
from aemos_core.errors import invalid
from aemos_core.identity import caller
from aemos_core.outbox import OutboxRows
from aemos_core.paging import Page
from aemos_core.times import now_ms

from aemos_rules import state_store
from aemos_rules.announcements import state_change
from aemos_rules.domain import StateRow
from aemos_rules.state_store import AnyRow, Instance

_MOST = 200
Listed = tuple[Sequence[AnyRow], str]


class DeviceStates:
    """States of the caller's organization."""

    def __init__(self, database: Database, outbox: OutboxRows, devices: device_pb2_grpc.DeviceServiceAsyncStub) -> None:
        self._database = database
        self._outbox = outbox
        self._devices = devices

    async def create(self, device: str, name: str, default_value: str) -> AnyRow:
        """A new state of a device; EXISTS when it has one of that name."""
        if not 0 < len(name) <= _MOST:
            raise invalid("name", f"must have 1 to {_MOST} characters")
        _check_value("defaultValue", default_value)
        owner = await self._devices.GetDevice(device_pb2.GetDeviceRequest(device=device))
        values = {
            "organization_id": caller().organization_id,
            "device_id": owner.id,
            "device_uuid": owner.uuid,
            "name": name,
            "default_value": default_value,
        }
        async with self._database.write() as connection:
            state_id = await state_store.create(connection, values)
            return await state_store.get(connection, caller().organization_id, state_id)

    async def get(self, state_id: int) -> AnyRow:
        """A state."""
        async with self._database.read() as connection:
            return await state_store.get(connection, caller().organization_id, state_id)

    async def page(self, device_uuid: str, page: Page) -> Listed:
        """A page of states and the token of the next."""
        async with self._database.read() as connection:
            rows = await state_store.page(connection, caller().organization_id, device_uuid, page.after, page.limit)
        return page.cut(rows)

    async def instances(self, state_id: int, page: Page) -> Listed:
        """A page of a state's changes, newest first, and the token of the next."""
        async with self._database.read() as connection:
            await state_store.get(connection, caller().organization_id, state_id)
            return page.cut(await state_store.instances(connection, state_id, page.after, page.limit))

    async def set(self, state_id: int, value: str) -> AnyRow:
        """Sets a state as of now, whatever a reading from the future said; an equal value announces nothing."""
        _check_value("value", value)
        rows = []
        async with self._database.write() as connection:
            state = await state_store.get(connection, caller().organization_id, state_id)
            (state,) = await state_store.load(connection, [state_id], lock=True)
            if state.value != value:
                at = now_ms()
                mark = (max(at, state.asserted_at_ms + 1), 0, 0)
                change = Instance(state_id, state.value, value, at, user_id=caller().user_id)
                await state_store.change(connection, [StateRow(state_id, value, mark)], [change])
                told = state_change(state, state.value, value, telemetry.current())
                rows = await self._outbox.add(connection, [outbox_row([told])])
            after = await state_store.get(connection, caller().organization_id, state_id)
        self._outbox.committed(rows)
        return after

    async def delete(self, state_id: int) -> None:
        """Removes a state and its instances."""
        async with self._database.write() as connection:
            await state_store.get(connection, caller().organization_id, state_id)
            await state_store.remove(connection, state_id)


def _check_value(loc: str, value: str) -> None:
    if len(value) > _MOST:
        raise invalid(loc, f"must have at most {_MOST} characters")
