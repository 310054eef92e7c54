"""Queries on organizations' devices, sensors, variables and tokens. Every one is inside one organization."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aemos_core import audit, records
from aemos_core.errors import not_found
from aemos_core.paging import Page
from aemos_core.times import now_ms
from sqlalchemy import (
    Column,
    ColumnElement,
    Select,
    Table,
    and_,
    bindparam,
    case,
    delete,
    false,
    func,
    insert,
    literal,
    null,
    or_,
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
Listed = tuple[Sequence[AnyRow], str]
"""A page's rows, and the token of the next one."""
_CHANGES_OVERLAP_MS = 10_000
"""Longer than a transaction may take: its change was stamped before its commit."""
CHANGES_KEPT_MS = 60 * 60 * 1000
_d, _s, _v, _token = t.device.c, t.sensor.c, t.telemetry_data.c, t.device_token.c


@dataclass(frozen=True)
class Entity:
    """A kind of entry: what people call it, its rows with their device's id, and what its lists may be limited to."""

    name: str
    table: Table
    query: Select[Any]
    parent: Entity | None = None
    parent_id: Column[Any] | None = None


DEVICE = Entity("device", t.device, select(*_d, _d.id.label("device_id")))
SENSOR = Entity("sensor", t.sensor, select(*_s, _d.uuid.label("device_uuid")).join(t.device), DEVICE, _s.device_id)
VARIABLE = Entity(
    "telemetry data",
    t.telemetry_data,
    select(*_v, _s.uuid.label("sensor_uuid"), _s.device_id).join(t.sensor),
    SENSOR,
    _v.sensor_id,
)
TOKEN = Entity(
    "token",
    t.device_token,
    select(*_token, _s.uuid.label("sensor_uuid")).outerjoin(t.sensor, _s.id == _token.sensor_id),
    DEVICE,
    _token.device_id,
)


def refers_to(table: Table, references: Sequence[str]) -> ColumnElement[bool]:
    """Rows by id, or by uuid where they have one: what has the shape of an id may still be a uuid."""
    ids = [int(one) for one in references if one.isascii() and one.isdigit() and len(one) < 19]
    by_id = table.c.id.in_(ids) if ids else false()
    return or_(by_id, table.c.uuid.in_(references)) if "uuid" in table.c else by_id


async def get(
    connection: AsyncConnection,
    entity: Entity,
    organization_id: int,
    reference: str,
    *conditions: ColumnElement[bool],
    lock: bool = False,
) -> AnyRow:
    """An entry by id or uuid, locked until the transaction's end when asked; NOT_FOUND when there is none."""
    named = entity.table.c.organization_id == organization_id, refers_to(entity.table, [reference])
    query = entity.query.where(*named, *conditions)
    row = (await connection.execute(query.with_for_update() if lock else query)).first()
    if row is None:
        raise not_found(entity.name)
    return row


async def listed(
    connection: AsyncConnection,
    entity: Entity,
    organization_id: int,
    page: Page,
    parent: str | None = None,
    label: str = "",
) -> Listed:
    """A page of entries by id: those of one parent when it is named, devices with a label "key=value" when it is given.

    And the token of the next page.
    """
    query = entity.query.where(entity.table.c.organization_id == organization_id)
    if entity.parent is not None and parent is not None:
        query = query.where(entity.parent_id == (await get(connection, entity.parent, organization_id, parent)).id)
    if label:
        query = query.where(func.instr(_d.labels, part_of_labels(label)) > 0)
    return await records.listed(connection, query, entity.table.c.id, page)


async def entries(connection: AsyncConnection, entity: Entity, *conditions: ColumnElement[bool]) -> Sequence[AnyRow]:
    """Entries by id."""
    query = entity.query.where(*conditions).order_by(entity.table.c.id)
    rows: Sequence[AnyRow] = (await connection.execute(query)).all()
    return rows


async def devices_of(
    connection: AsyncConnection, organization_id: int, references: Sequence[str], sensor_uuids: Sequence[str]
) -> Sequence[AnyRow]:
    """Devices of an organization by id or uuid, and those of these sensors. With a subquery MariaDB reads them all."""
    of_sensors = (await connection.execute(select(_s.device_id).where(_s.uuid.in_(sensor_uuids)))).scalars().all()
    named = or_(refers_to(t.device, references), _d.id.in_(of_sensors))
    return await entries(connection, DEVICE, _d.organization_id == organization_id, named)


async def add(connection: AsyncConnection, entity: Entity, organization_id: int, values: dict[str, Any]) -> AnyRow:
    """Inserts an entry and records it; the entry."""
    created = {"created_at_ms": now_ms()} if "created_at_ms" in entity.table.c else {}
    inserting = insert(entity.table).values(organization_id=organization_id, **created, **values)
    new_id = (await connection.execute(inserting)).inserted_primary_key[0]  # type: ignore[index]
    return await _recorded(connection, entity, new_id, "create")


async def change(
    connection: AsyncConnection, entity: Entity, row: AnyRow, values: dict[str, Any], verb: str = "update"
) -> AnyRow:
    """Updates an entry and records it, by the verb; the entry as it is then."""
    await connection.execute(update(entity.table).where(entity.table.c.id == row.id).values(**values))
    return await _recorded(connection, entity, row.id, verb)


async def remove(connection: AsyncConnection, entity: Entity, row: AnyRow) -> None:
    """Deletes an entry with what hangs on it, and records it."""
    await connection.execute(delete(entity.table).where(entity.table.c.id == row.id))
    await _record(connection, entity, row, "delete")


async def _recorded(connection: AsyncConnection, entity: Entity, row_id: int, verb: str) -> AnyRow:
    row = (await connection.execute(entity.query.where(entity.table.c.id == row_id))).one()
    await _record(connection, entity, row, verb)
    return row


async def _record(connection: AsyncConnection, entity: Entity, row: AnyRow, verb: str) -> None:
    await connection.execute(insert(t.registry_change).values(device_id=row.device_id, at_ms=now_ms()))
    await audit.record(connection, t.audit, f"{entity.table.name}.{verb}", f"{entity.name} {row.id}")


async def changes_since(connection: AsyncConnection, since_ms: int) -> list[int]:
    """Ids of the devices whose entries changed since then, and a little before."""
    c = t.registry_change.c
    query = select(c.device_id).where(c.at_ms >= since_ms - _CHANGES_OVERLAP_MS).distinct()
    return list((await connection.execute(query)).scalars())


async def make_variables(connection: AsyncConnection, unknown: Mapping[tuple[int, str], UnknownVariable]) -> None:
    """Variables that readings make, by sensor id and name, as far as they are missing and their sensors have room.

    Nobody's copy of the registry lacks anything by it but these variables, which each finds missing for itself, so the
    change is not announced.
    """
    sensors = {sensor_id for sensor_id, _ in unknown}
    query = select(_v.sensor_id, func.count()).where(_v.sensor_id.in_(sensors)).group_by(_v.sensor_id)
    used = {row[0]: row[1] for row in await connection.execute(query)}
    query = select(_v.sensor_id, _v.variable_name)
    query = query.where(_v.sensor_id.in_(sensors), _v.variable_name.in_({name for _, name in unknown}))
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


async def set_times(connection: AsyncConnection, column: Column[Any], times: Mapping[int, int]) -> None:
    """A time for each of many rows by id, unless the row has a later one. Nothing is recorded: nobody keeps a copy of
    it."""
    time = bindparam("time", type_=column.type)
    later = update(column.table).values({column: case((column > time, column), else_=time)})
    rows = [{"row": row_id, "time": at} for row_id, at in times.items()]
    await connection.execute(later.where(column.table.c.id == bindparam("row")), rows)


_SOURCE = (_d.uuid.label("device_uuid"), _d.creates_variables, _s.uuid.label("sensor_uuid"))


async def valid_tokens(connection: AsyncConnection, which: ColumnElement[bool]) -> Sequence[AnyRow]:
    """The valid ones of some tokens, with their devices' uuids and their own sensors' uuids."""
    ends = _token.expires_at_ms
    query = (
        select(_token.id, _token.token_sha256, _token.organization_id, _token.device_id, ends, *_SOURCE)
        .join(t.device, _d.id == _token.device_id)
        .outerjoin(t.sensor, _s.id == _token.sensor_id)
        .where(which, _token.revoked_at_ms.is_(None), ends.is_(None) | (ends > now_ms()))
    )
    return (await connection.execute(query)).all()


async def owners_of(connection: AsyncConnection, sensors: Iterable[tuple[int, str]]) -> Sequence[AnyRow]:
    """As `valid_tokens`, for sensors by organization and uuid: what rules derived needs no token."""
    never = null().label("expires_at_ms")
    query = (
        select(literal(0).label("id"), _s.organization_id, _s.device_id, never, *_SOURCE)
        .join(t.device, _d.id == _s.device_id)
        .where(tuple_(_s.organization_id, _s.uuid).in_(list(sensors)))
    )
    return (await connection.execute(query)).all()


async def variables_of(
    connection: AsyncConnection, *sensors: ColumnElement[bool], names: Sequence[str] = ()
) -> Sequence[AnyRow]:
    """Variables of sensors, one row at least for each sensor, in order of sensor and name.

    A row's `id` is None where the sensor has no variable of these names; no names are all names.
    """
    named = and_(_v.sensor_id == _s.id, _v.variable_name.in_(names)) if names else _v.sensor_id == _s.id
    query = (
        select(_v.id, _v.variable_name, _v.type, _s.device_id, _s.id.label("sensor_id"), _s.uuid.label("sensor_uuid"))
        .select_from(t.sensor.outerjoin(t.telemetry_data, named))
        .where(*sensors)
        .order_by(_s.id, _v.variable_name)
    )
    return (await connection.execute(query)).all()
