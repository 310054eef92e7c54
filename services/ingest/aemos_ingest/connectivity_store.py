"""Queries on leases of gateways and connections of devices."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from sqlalchemy import ColumnElement, delete, false, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_ingest import tables as t
from aemos_ingest.registry_store import AnyRow

HEARD = ""
"""Stands for a gateway where a device has no connection but was heard of, for a time of its own."""
_lease = t.gateway_lease.c
_connection = t.device_connection.c
Place = tuple[int, str]
"""A device, and the gateway that it is connected to."""


async def renew(connection: AsyncConnection, gateway_id: str, until_ms: int) -> bool:
    """Prolongs a lease; True when there was none."""
    mine = update(t.gateway_lease).where(_lease.gateway_id == gateway_id).values(until_ms=until_ms)
    if (await connection.execute(mine)).rowcount:
        return False
    await connection.execute(insert(t.gateway_lease).values(gateway_id=gateway_id, until_ms=until_ms))
    return True


async def end_leases(connection: AsyncConnection, now_ms: int) -> None:
    """Whoever renews one of these later is told that it is new."""
    await connection.execute(delete(t.gateway_lease).where(_lease.until_ms < now_ms))


async def lock_devices(connection: AsyncConnection, device_ids: Iterable[int]) -> Sequence[AnyRow]:
    """Those that exist, locked until the transaction's end: what makes one online changes only under this lock."""
    c = t.device.c
    columns = (c.id, c.id.label("device_id"), c.organization_id, c.uuid.label("device_uuid"), c.online)
    query = select(*columns, c.last_seen_at_ms).where(c.id.in_(list(device_ids))).order_by(c.id)
    return (await connection.execute(query.with_for_update())).all()


async def places_of(connection: AsyncConnection, device_ids: Collection[int]) -> set[Place]:
    """Where these devices are connected."""
    query = select(_connection.device_id, _connection.gateway_id).where(_connection.device_id.in_(device_ids))
    return {(row.device_id, row.gateway_id) for row in await connection.execute(query)}


async def connect(
    connection: AsyncConnection, gateway_id: str, device_ids: Iterable[int], until_ms: int | None
) -> None:
    """Makes connections that are not there."""
    rows = [{"device_id": one, "gateway_id": gateway_id, "until_ms": until_ms} for one in device_ids]
    if rows:
        await connection.execute(insert(t.device_connection), rows)


async def prolong(connection: AsyncConnection, device_ids: Collection[int], until_ms: int) -> None:
    """Devices that were heard of again."""
    heard = (_connection.gateway_id == HEARD) & _connection.device_id.in_(device_ids)
    await connection.execute(update(t.device_connection).where(heard).values(until_ms=until_ms))


async def disconnect(connection: AsyncConnection, places: Collection[Place]) -> None:
    """Takes connections away; those that are not there are no mistake."""
    if places:
        key = tuple_(_connection.device_id, _connection.gateway_id)
        await connection.execute(delete(t.device_connection).where(key.in_(list(places))))


async def set_online(connection: AsyncConnection, device_ids: Collection[int], online: bool, seen_ms: int) -> None:
    """The change of some devices; `seen_ms` is 0 when they were not seen just now."""
    if device_ids:
        values = {"online": online, **({"last_seen_at_ms": seen_ms} if seen_ms else {})}
        await connection.execute(update(t.device).where(t.device.c.id.in_(device_ids)).values(values))


async def orphans(
    connection: AsyncConnection, now_ms: int, limit: int, device_ids: Collection[int] | None = None
) -> list[Place]:
    """Connections that hold nobody online any more, of some devices when they are given."""
    dead = await _without_lease(connection, now_ms)
    orphan: ColumnElement[bool] = _connection.gateway_id.in_(dead) if dead else false()
    query = select(_connection.device_id, _connection.gateway_id).where(orphan | (_connection.until_ms < now_ms))
    if device_ids is not None:
        query = query.where(_connection.device_id.in_(device_ids))
    return [(row.device_id, row.gateway_id) for row in await connection.execute(query.limit(limit))]


async def _without_lease(connection: AsyncConnection, now_ms: int) -> set[str]:
    holders = set((await connection.execute(select(_connection.gateway_id).distinct())).scalars()) - {HEARD}
    alive = select(_lease.gateway_id).where(_lease.until_ms >= now_ms)
    return holders - set((await connection.execute(alive)).scalars())
