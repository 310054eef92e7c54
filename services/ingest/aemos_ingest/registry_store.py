"""Queries on organizations' devices, sensors, variables and tokens. Every one is inside one organization."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aemos_core import audit
from aemos_core.database import by_id
from aemos_core.errors import not_found
from aemos_core.times import now_ms
from sqlalchemy import (
    Column,
    ColumnElement,
    Select,
    Table,
    delete,
    func,
    insert,
    literal,
    null,
    select,
    tuple_,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_ingest import tables as t
from aemos_ingest.domain import MOST_VARIABLES, UnknownVariable
from aemos_ingest.labels import part_of_labels

AnyRow = Any
"""A row of a query, whose columns the query names."""
_NAMES = {"device": "device", "sensor": "sensor", "telemetry_data": "telemetry data", "device_token": "token"}
_CHANGES_OVERLAP_MS = 10_000
"""Longer than a transaction may take: its change was stamped before its commit."""
_CHANGES_KEPT_MS = 60 * 60 * 1000


def _by_reference(table: Table, reference: str) -> ColumnElement[bool]:
    """An id or a uuid: what has the shape of an id may still be a uuid."""
    by_uuid = table.c.uuid == reference
    is_id = reference.isascii() and reference.isdigit() and len(reference) < 19
    return (table.c.id == int(reference)) | by_uuid if is_id else by_uuid


def _sensors() -> Select[Any]:
    return select(*t.sensor.c, t.device.c.uuid.label("device_uuid")).join(t.device)


def _variables() -> Select[Any]:
    return select(*t.telemetry_data.c, t.sensor.c.uuid.label("sensor_uuid"), t.sensor.c.device_id).join(t.sensor)


async def _one(connection: AsyncConnection, query: Select[Any], what: str) -> AnyRow:
    row = (await connection.execute(query)).first()
    if row is None:
        raise not_found(what)
    return row


async def get_device(
    connection: AsyncConnection, organization_id: int, reference: str, *, lock: bool = False
) -> AnyRow:
    """A device by id or uuid, locked until the transaction's end when asked."""
    query = select(t.device).where(t.device.c.organization_id == organization_id, _by_reference(t.device, reference))
    return await _one(connection, query.with_for_update() if lock else query, "device")


async def get_sensor(connection: AsyncConnection, organization_id: int, reference: str) -> AnyRow:
    """A sensor by id or uuid, with its device's uuid."""
    query = _sensors().where(t.sensor.c.organization_id == organization_id, _by_reference(t.sensor, reference))
    return await _one(connection, query, "sensor")


async def get_variable(connection: AsyncConnection, organization_id: int, variable_id: int) -> AnyRow:
    """A variable, with its sensor's uuid."""
    v = t.telemetry_data.c
    query = _variables().where(v.organization_id == organization_id, v.id == variable_id)
    return await _one(connection, query, "telemetry data")


def _tokens() -> Select[Any]:
    query = select(*t.device_token.c, t.sensor.c.uuid.label("sensor_uuid"))
    return query.outerjoin(t.sensor, t.sensor.c.id == t.device_token.c.sensor_id)


def _is_valid() -> ColumnElement[bool]:
    token = t.device_token.c
    return token.revoked_at_ms.is_(None) & (token.expires_at_ms.is_(None) | (token.expires_at_ms > now_ms()))


async def get_token(connection: AsyncConnection, device_id: int, token_id: int, *, lock: bool = False) -> AnyRow:
    """A token of a device, with its own sensor's uuid; locked until the transaction's end when asked."""
    token = t.device_token.c
    query = _tokens().where(token.device_id == device_id, token.id == token_id)
    return await _one(connection, query.with_for_update() if lock else query, "token")


async def list_tokens(connection: AsyncConnection, device_id: int, after: int, limit: int) -> Sequence[AnyRow]:
    """At most limit + 1 tokens of a device behind an id, as `get_token` gives them."""
    token = t.device_token.c
    query = _tokens().where(token.device_id == device_id, token.id > after)
    rows: Sequence[AnyRow] = (await connection.execute(query.order_by(token.id).limit(limit + 1))).all()
    return rows


async def list_devices(
    connection: AsyncConnection, organization_id: int, after: int, limit: int, label: str = ""
) -> Sequence[AnyRow]:
    """At most limit + 1 devices behind an id, with a label "key=value" when it is given."""
    query = select(t.device)
    if label:
        query = query.where(func.instr(t.device.c.labels, part_of_labels(label)) > 0)
    return await _list(connection, query, t.device, organization_id, after, limit)


async def list_sensors(
    connection: AsyncConnection, organization_id: int, device: str, after: int, limit: int
) -> Sequence[AnyRow]:
    """At most limit + 1 sensors behind an id, of one device when it is named."""
    query = _sensors()
    if device:
        query = query.where(t.sensor.c.device_id == (await get_device(connection, organization_id, device)).id)
    return await _list(connection, query, t.sensor, organization_id, after, limit)


async def list_variables(
    connection: AsyncConnection, organization_id: int, sensor: str, after: int, limit: int
) -> Sequence[AnyRow]:
    """At most limit + 1 variables behind an id, of one sensor when it is named."""
    query = _variables()
    if sensor:
        query = query.where(t.telemetry_data.c.sensor_id == (await get_sensor(connection, organization_id, sensor)).id)
    return await _list(connection, query, t.telemetry_data, organization_id, after, limit)


async def _list(
    connection: AsyncConnection, query: Select[Any], table: Table, organization_id: int, after: int, limit: int
) -> Sequence[AnyRow]:
    page = query.where(table.c.organization_id == organization_id, table.c.id > after)
    rows: Sequence[AnyRow] = (await connection.execute(page.order_by(table.c.id).limit(limit + 1))).all()
    return rows


async def add(connection: AsyncConnection, table: Table, device_id: int | None, values: dict[str, Any]) -> int:
    """Inserts a row of the registry and records it. A device's id is its own `device_id`."""
    inserted = await connection.execute(insert(table).values(**values))
    new_id = int(inserted.inserted_primary_key[0])  # type: ignore[index]
    await _changed(connection, table, "create", new_id, new_id if device_id is None else device_id)
    return new_id


async def make_variables(connection: AsyncConnection, unknown: Mapping[tuple[int, str], UnknownVariable]) -> None:
    """Variables that readings make, by sensor id and name, as far as they are missing and their sensors have room.

    Nobody's copy of the registry lacks anything by it but these variables, which each finds missing for itself, so the
    change is not announced.
    """
    v = t.telemetry_data.c
    sensors = {sensor_id for sensor_id, _ in unknown}
    query = select(v.sensor_id, func.count()).where(v.sensor_id.in_(sensors)).group_by(v.sensor_id)
    used = {row[0]: row[1] for row in await connection.execute(query)}
    query = select(v.sensor_id, v.variable_name)
    query = query.where(v.sensor_id.in_(sensors), v.variable_name.in_({name for _, name in unknown}))
    there = {(row[0], row[1]) for row in await connection.execute(query)}
    made = []
    for key in sorted(unknown.keys() - there):  # in one order everywhere: no two processes wait for each other
        used[key[0]] = used.get(key[0], 0) + 1
        if used[key[0]] <= MOST_VARIABLES:
            made.append(unknown[key])
    if made:
        await connection.execute(insert(t.telemetry_data), [_new_variable(one) for one in made])
    for one in made:
        target = f"telemetry data {one.name!r} of sensor {one.sensor.id}"
        await audit.record(connection, t.audit, "telemetry_data.create", target, one.source.organization_id)


def _new_variable(unknown: UnknownVariable) -> dict[str, Any]:
    return {
        "organization_id": unknown.source.organization_id,
        "sensor_id": unknown.sensor.id,
        "variable_name": unknown.name,
        "type": unknown.type,
        "unit": "",
    }


async def change(
    connection: AsyncConnection,
    table: Table,
    device_id: int,
    row_id: int,
    values: dict[str, Any],
    verb: str = "update",
) -> None:
    """Updates a row of the registry and records it, by the verb."""
    await connection.execute(update(table).where(table.c.id == row_id).values(**values))
    await _changed(connection, table, verb, row_id, device_id)


async def set_times(connection: AsyncConnection, column: Column[Any], times: Mapping[int, int]) -> None:
    """A time for each of many rows by id, in one statement. Nothing is recorded: nobody keeps a copy of it."""
    table = column.table
    values = {column: by_id(times, table.c.id)}
    await connection.execute(update(table).where(table.c.id.in_(times)).values(values))


async def remove(connection: AsyncConnection, table: Table, device_id: int, row_id: int) -> None:
    """Deletes a row of the registry with what hangs on it, and records it."""
    await connection.execute(delete(table).where(table.c.id == row_id))
    await _changed(connection, table, "delete", row_id, device_id)


async def _changed(connection: AsyncConnection, table: Table, verb: str, row_id: int, device_id: int) -> None:
    now = now_ms()
    await connection.execute(insert(t.registry_change).values(device_id=device_id, at_ms=now))
    await connection.execute(delete(t.registry_change).where(t.registry_change.c.at_ms < now - _CHANGES_KEPT_MS))
    await audit.record(connection, t.audit, f"{table.name}.{verb}", f"{_NAMES[table.name]} {row_id}")


async def changes_since(connection: AsyncConnection, since_ms: int) -> list[int]:
    """Ids of the devices whose entries changed since then, and a little before."""
    c = t.registry_change.c
    query = select(c.device_id).where(c.at_ms >= since_ms - _CHANGES_OVERLAP_MS).distinct()
    return list((await connection.execute(query)).scalars())


async def find_tokens(connection: AsyncConnection, digests: Iterable[bytes]) -> Sequence[AnyRow]:
    """The valid ones of the tokens with these SHA-256, with their devices' uuids."""
    token = t.device_token.c
    query = (
        select(
            token.id,
            token.token_sha256,
            token.organization_id,
            token.device_id,
            t.device.c.uuid.label("device_uuid"),
            token.expires_at_ms,
        )
        .join(t.device, t.device.c.id == token.device_id)
        .where(token.token_sha256.in_(list(digests)), _is_valid())
    )
    rows: Sequence[AnyRow] = (await connection.execute(query)).all()
    return rows


async def tokens_of(connection: AsyncConnection, token_ids: Iterable[int]) -> Sequence[AnyRow]:
    """The valid ones of these tokens, with their devices' uuids and their own sensors' uuids."""
    token = t.device_token.c
    query = (
        select(
            token.id,
            token.organization_id,
            token.device_id,
            t.device.c.uuid.label("device_uuid"),
            t.device.c.creates_variables,
            t.sensor.c.uuid.label("sensor_uuid"),
            token.expires_at_ms,
        )
        .join(t.device, t.device.c.id == token.device_id)
        .outerjoin(t.sensor, t.sensor.c.id == token.sensor_id)
        .where(token.id.in_(list(token_ids)), _is_valid())
    )
    return (await connection.execute(query)).all()


async def owners_of(connection: AsyncConnection, sensors: Iterable[tuple[int, str]]) -> Sequence[AnyRow]:
    """As tokens_of, for sensors by organization and uuid: what rules derived needs no token."""
    sensor = t.sensor.c
    query = (
        select(
            literal(0).label("id"),
            sensor.organization_id,
            sensor.device_id,
            t.device.c.uuid.label("device_uuid"),
            t.device.c.creates_variables,
            sensor.uuid.label("sensor_uuid"),
            null().label("expires_at_ms"),
        )
        .join(t.device, t.device.c.id == sensor.device_id)
        .where(tuple_(sensor.organization_id, sensor.uuid).in_(list(sensors)))
    )
    return (await connection.execute(query)).all()


async def sensors_of(connection: AsyncConnection, device_ids: Iterable[int]) -> Sequence[AnyRow]:
    """The sensors of devices and their variables, one row for each variable, at least one for each sensor."""
    v = t.telemetry_data.c
    query = (
        select(
            t.sensor.c.device_id,
            t.sensor.c.id,
            t.sensor.c.uuid,
            v.id.label("variable_id"),
            v.variable_name,
            v.type,
        )
        .outerjoin(t.telemetry_data, v.sensor_id == t.sensor.c.id)
        .where(t.sensor.c.device_id.in_(list(device_ids)))
        .order_by(t.sensor.c.id)
    )
    return (await connection.execute(query)).all()


async def describe_sensors(connection: AsyncConnection, organization_id: int, uuids: Iterable[str]) -> Sequence[AnyRow]:
    """Sensors of an organization by uuid and their variables, rows as in `sensors_of`."""
    v = t.telemetry_data.c
    query = (
        select(t.sensor.c.uuid, v.variable_name, v.type)
        .outerjoin(t.telemetry_data, v.sensor_id == t.sensor.c.id)
        .where(t.sensor.c.organization_id == organization_id, t.sensor.c.uuid.in_(list(uuids)))
    )
    return (await connection.execute(query)).all()
