"""Use cases of the registry: devices, their tokens, sensors and variables of the caller's organization."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from aemos_core.database import Database
from aemos_core.errors import AemosError, Kind, invalid
from aemos_core.identity import caller
from aemos_core.paging import Page
from aemos_core.times import now_ms
from sqlalchemy import ColumnElement
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_ingest import registry_store as store
from aemos_ingest import tables as t
from aemos_ingest.domain import TYPES, check_name, check_uuid
from aemos_ingest.labels import merged_labels
from aemos_ingest.registry_store import DEVICE, SENSOR, TOKEN, VARIABLE, AnyRow, Entity, Listed
from aemos_ingest.sightings import Sightings

MOST_OVERLAP_SECONDS = 30 * 24 * 60 * 60
MOST_RESOLVED = 1_000


class Registry:
    """What somebody may keep a copy of is told, by `announce`, after the commit of its change."""

    def __init__(self, database: Database, announce: Callable[[], Awaitable[None]], sightings: Sightings) -> None:
        self._database = database
        self._announce = announce
        self._sightings = sightings

    async def get(self, entity: Entity, reference: str) -> AnyRow:
        """An entry by id or uuid."""
        async with self._database.read() as connection:
            return await _get(connection, entity, reference)

    async def page(self, entity: Entity, page: Page, parent: str | None = None, label: str = "") -> Listed:
        """A page of entries and the token of the next: of one parent, or with a label "key=value", when it is given."""
        async with self._database.read() as connection:
            return await store.listed(connection, entity, caller().organization_id, page, parent, label)

    async def delete(self, entity: Entity, reference: str) -> None:
        """Removes an entry with all that hangs on it: sensors, variables and the tokens bound to it."""
        async with self._changing() as connection:
            await store.remove(connection, entity, await _get(connection, entity, reference))

    async def create_device(
        self,
        name: str,
        uuid: str,
        creates_variables: bool,
        labels: Mapping[str, str] | None = None,
        attributes: str = "",
    ) -> AnyRow:
        """A new device, its attributes as they are stored; EXISTS when the uuid is taken."""
        values = {
            "uuid": check_uuid("uuid", uuid or str(uuid4())),
            "name": check_name("name", name),
            "creates_variables": creates_variables,
            "labels": merged_labels(None, labels or {}),
            "attributes": attributes,
        }
        async with self._database.write() as connection:
            return await _add(connection, DEVICE, values)

    async def update_device(
        self, reference: str, changes: Mapping[str, Any], labels: Mapping[str, str] | None = None
    ) -> AnyRow:
        """Changes columns of a device, and of its labels those that are given: an empty value removes one."""
        if "name" in changes:
            check_name("name", changes["name"])
        async with self._changing() as connection:
            found = await _get(connection, DEVICE, reference, lock=True)
            values = {**changes, "labels": merged_labels(found.labels, labels)} if labels else dict(changes)
            return await store.change(connection, DEVICE, found, values) if values else found

    async def create_sensor(self, device: str, name: str, uuid: str) -> AnyRow:
        """A new sensor of a device; EXISTS when the uuid is taken."""
        uuid = check_uuid("uuid", uuid or str(uuid4()))
        async with self._changing() as connection:
            owner = await _get(connection, DEVICE, device)
            return await _add(
                connection, SENSOR, {"device_id": owner.id, "uuid": uuid, "name": check_name("name", name)}
            )

    async def rename_sensor(self, reference: str, name: str | None) -> AnyRow:
        """Changes a sensor's name when one is given."""
        async with self._database.write() as connection:
            found = await _get(connection, SENSOR, reference)
            if name is None:
                return found
            return await store.change(connection, SENSOR, found, {"name": check_name("name", name)})

    async def describe_sensors(self, organization_id: int, uuids: Sequence[str]) -> dict[str, dict[str, str]]:
        """Those of the sensors that exist in the organization, each with its variables' types by name."""
        described: dict[str, dict[str, str]] = {}
        named = t.sensor.c.organization_id == organization_id, t.sensor.c.uuid.in_(uuids)
        async with self._database.read() as connection:
            for row in await store.variables_of(connection, *named):
                variables = described.setdefault(row.sensor_uuid, {})
                if row.id is not None:
                    variables[row.variable_name] = row.type
        return described

    async def create_variable(self, sensor: str, name: str, variable_type: str, unit: str) -> AnyRow:
        """A new variable of a sensor; EXISTS when the sensor has one of that name."""
        if variable_type not in TYPES:
            raise invalid("type", f"must be one of {', '.join(TYPES)}")
        if len(unit) > 40:
            raise invalid("unit", "must have at most 40 characters")
        async with self._changing() as connection:
            owner = await _get(connection, SENSOR, sensor)
            named = {"sensor_id": owner.id, "variable_name": check_name("variableName", name)}
            return await _add(connection, VARIABLE, {**named, "type": variable_type, "unit": unit})

    async def create_token(
        self, device: str, name: str, sensor_uuid: str = "", expires_at_ms: int | None = None
    ) -> tuple[AnyRow, str]:
        """A new token: its row, and the secret that is shown this once."""
        if expires_at_ms is not None and expires_at_ms <= now_ms():
            raise invalid("expiresAt", "must be in the future")
        async with self._database.write() as connection:
            owner = await _get(connection, DEVICE, device)
            sensor = await _get(connection, SENSOR, sensor_uuid) if sensor_uuid else None
            if sensor is not None and sensor.device_id != owner.id:
                raise invalid("sensorUuid", "is no sensor of this device")
            return await _add_token(connection, owner.id, sensor and sensor.id, check_name("name", name), expires_at_ms)

    async def rotate_token(self, device: str, token_id: int, overlap_seconds: int) -> tuple[AnyRow, str]:
        """A new token like an old one, which ends after the overlap; STALE when it has ended already."""
        if not 0 <= overlap_seconds <= MOST_OVERLAP_SECONDS:
            raise invalid("overlapSeconds", f"must be 0 to {MOST_OVERLAP_SECONDS}")
        now = now_ms()
        async with self._changing() as connection:
            old = await _get_token(connection, device, token_id)
            if old.revoked_at_ms is not None or (old.expires_at_ms or now + 1) <= now:
                raise AemosError(Kind.STALE, "the token is no longer valid")
            lifetime = old.expires_at_ms and old.expires_at_ms - old.created_at_ms
            made = await _add_token(connection, old.device_id, old.sensor_id, old.name, lifetime and now + lifetime)
            end = now + overlap_seconds * 1000
            lives_on = {"expires_at_ms": min(end, old.expires_at_ms or end)}
            await store.change(
                connection, TOKEN, old, lives_on if overlap_seconds else {"revoked_at_ms": now}, "rotate"
            )
            return made

    async def revoke_token(self, device: str, token_id: int) -> None:
        """Ends a token; again is the same as once."""
        async with self._changing() as connection:
            found = await _get_token(connection, device, token_id)
            if found.revoked_at_ms is None:
                await store.change(connection, TOKEN, found, {"revoked_at_ms": now_ms()}, "revoke")

    async def resolve_tokens(self, digests: Collection[bytes]) -> Mapping[bytes, AnyRow]:
        """The valid ones of the tokens with these SHA-256, each with its device."""
        if len(digests) > MOST_RESOLVED:
            raise invalid("tokenSha256", f"must have at most {MOST_RESOLVED}")
        async with self._database.read() as connection:
            rows = await store.valid_tokens(connection, t.device_token.c.token_sha256.in_(digests))
        self._sightings.saw(row.id for row in rows)
        return {row.token_sha256: row for row in rows}

    async def changes(self, since_ms: int) -> tuple[list[int], int]:
        """The devices that changed since, and the time to ask from next."""
        now = now_ms()
        if not since_ms:
            return [], now
        async with self._database.read() as connection:
            return await store.changes_since(connection, since_ms), now

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that is announced after its commit."""
        async with self._database.write() as connection:
            yield connection
        await self._announce()


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
) -> tuple[AnyRow, str]:
    secret = secrets.token_urlsafe(24)
    values = {"device_id": device_id, "sensor_id": sensor_id, "name": name, "expires_at_ms": expires_at_ms}
    digest = hashlib.sha256(secret.encode()).digest()
    return await _add(connection, TOKEN, {**values, "token_sha256": digest}), secret
