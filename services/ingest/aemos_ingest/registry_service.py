"""Use cases of the registry: devices, sensors and variables of the caller's organization."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from aemos_core.database import Database
from aemos_core.errors import invalid
from aemos_core.identity import caller
from aemos_core.paging import Page
from aemos_core.times import now_ms

from aemos_ingest import registry_store as store
from aemos_ingest import tables as t
from aemos_ingest.domain import TYPES, check_name, check_uuid
from aemos_ingest.labels import merged_labels
from aemos_ingest.registry_store import AnyRow

Listed = tuple[Sequence[AnyRow], str]


class Registry:
    """Every change is told to whoever keeps a copy, by `announce`, after its commit."""

    def __init__(self, database: Database, announce: Callable[[], Awaitable[None]]) -> None:
        self._database = database
        self._announce = announce

    async def create_device(
        self,
        name: str,
        uuid: str,
        creates_variables: bool,
        labels: Mapping[str, str] | None = None,
        attributes: str = "",
    ) -> AnyRow:
        """A new device, its attributes as they are stored; EXISTS when the uuid is taken."""
        uuid = check_uuid("uuid", uuid or str(uuid4()))
        values = new_row(
            uuid=uuid,
            name=check_name("name", name),
            creates_variables=creates_variables,
            labels=merged_labels(None, labels or {}),
            attributes=attributes,
        )
        async with self._database.write() as connection:
            await store.add(connection, t.device, None, values)
            return await store.get_device(connection, caller().organization_id, uuid)

    async def device(self, reference: str) -> AnyRow:
        """A device by id or uuid."""
        async with self._database.read() as connection:
            return await store.get_device(connection, caller().organization_id, reference)

    async def devices(self, page: Page, label: str = "") -> Listed:
        """A page of devices, only those with a label "key=value" when it is given, and the token of the next."""
        async with self._database.read() as connection:
            return page.cut(
                await store.list_devices(connection, caller().organization_id, page.after, page.limit, label)
            )

    async def update_device(
        self, reference: str, changes: Mapping[str, Any], labels: Mapping[str, str] | None = None
    ) -> AnyRow:
        """Changes columns of a device, and of its labels those that are given: an empty value removes one."""
        if "name" in changes:
            check_name("name", changes["name"])
        async with self._database.write() as connection:
            found = await store.get_device(connection, caller().organization_id, reference, lock=True)
            values = {**changes, "labels": merged_labels(found.labels, labels)} if labels else dict(changes)
            if values:
                await store.change(connection, t.device, found.id, found.id, values)
            row = await store.get_device(connection, caller().organization_id, found.uuid)
        await self._announce()
        return row

    async def delete_device(self, reference: str) -> None:
        """Removes a device with its sensors, variables and tokens."""
        async with self._database.write() as connection:
            found = await store.get_device(connection, caller().organization_id, reference)
            await store.remove(connection, t.device, found.id, found.id)
        await self._announce()

    async def create_sensor(self, device: str, name: str, uuid: str) -> AnyRow:
        """A new sensor of a device; EXISTS when the uuid is taken."""
        uuid = check_uuid("uuid", uuid or str(uuid4()))
        async with self._database.write() as connection:
            owner = await store.get_device(connection, caller().organization_id, device)
            values = new_row(device_id=owner.id, uuid=uuid, name=check_name("name", name))
            await store.add(connection, t.sensor, owner.id, values)
            row = await store.get_sensor(connection, caller().organization_id, uuid)
        await self._announce()
        return row

    async def sensor(self, reference: str) -> AnyRow:
        """A sensor by id or uuid."""
        async with self._database.read() as connection:
            return await store.get_sensor(connection, caller().organization_id, reference)

    async def sensors(self, device: str, page: Page) -> Listed:
        """A page of sensors and the token of the next."""
        async with self._database.read() as connection:
            return page.cut(
                await store.list_sensors(connection, caller().organization_id, device, page.after, page.limit)
            )

    async def rename_sensor(self, reference: str, name: str | None) -> AnyRow:
        """Changes a sensor's name when one is given."""
        async with self._database.write() as connection:
            found = await store.get_sensor(connection, caller().organization_id, reference)
            if name is not None:
                await store.change(connection, t.sensor, found.device_id, found.id, {"name": check_name("name", name)})
            return await store.get_sensor(connection, caller().organization_id, found.uuid)

    async def delete_sensor(self, reference: str) -> None:
        """Removes a sensor with its variables and the tokens bound to it."""
        async with self._database.write() as connection:
            found = await store.get_sensor(connection, caller().organization_id, reference)
            await store.remove(connection, t.sensor, found.device_id, found.id)
        await self._announce()

    async def describe_sensors(self, organization_id: int, uuids: Sequence[str]) -> dict[str, dict[str, str]]:
        """Those of the sensors that exist in the organization, each with its variables' types by name."""
        described: dict[str, dict[str, str]] = {}
        async with self._database.read() as connection:
            for row in await store.describe_sensors(connection, organization_id, uuids):
                variables = described.setdefault(row.uuid, {})
                if row.variable_name is not None:
                    variables[row.variable_name] = row.type
        return described

    async def create_variable(self, sensor: str, name: str, variable_type: str, unit: str) -> AnyRow:
        """A new variable of a sensor; EXISTS when the sensor has one of that name."""
        if variable_type not in TYPES:
            raise invalid("type", f"must be one of {', '.join(TYPES)}")
        if len(unit) > 40:
            raise invalid("unit", "must have at most 40 characters")
        async with self._database.write() as connection:
            owner = await store.get_sensor(connection, caller().organization_id, sensor)
            values = {
                "organization_id": caller().organization_id,
                "sensor_id": owner.id,
                "variable_name": check_name("variableName", name),
                "type": variable_type,
                "unit": unit,
            }
            variable_id = await store.add(connection, t.telemetry_data, owner.device_id, values)
            row = await store.get_variable(connection, caller().organization_id, variable_id)
        await self._announce()
        return row

    async def variable(self, variable_id: int) -> AnyRow:
        """A variable."""
        async with self._database.read() as connection:
            return await store.get_variable(connection, caller().organization_id, variable_id)

    async def variables(self, sensor: str, page: Page) -> Listed:
        """A page of variables and the token of the next."""
        async with self._database.read() as connection:
            return page.cut(
                await store.list_variables(connection, caller().organization_id, sensor, page.after, page.limit)
            )

    async def delete_variable(self, variable_id: int) -> None:
        """Removes a variable."""
        async with self._database.write() as connection:
            found = await store.get_variable(connection, caller().organization_id, variable_id)
            await store.remove(connection, t.telemetry_data, found.device_id, found.id)
        await self._announce()

    async def changes(self, since_ms: int) -> tuple[list[int], int]:
        """The devices that changed since, and the time to ask from next."""
        now = now_ms()
        if not since_ms:
            return [], now
        async with self._database.read() as connection:
            return await store.changes_since(connection, since_ms), now


def new_row(**values: Any) -> dict[str, Any]:
    """The columns of a new row of the caller's organization."""
    return {"organization_id": caller().organization_id, "created_at_ms": now_ms(), **values}
