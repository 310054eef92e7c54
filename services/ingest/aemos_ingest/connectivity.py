"""Who is online: connections that gateways report under a lease, one event for each change, also after a kill."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from aemos.v1 import connectivity_pb2 as pb
from aemos.v1 import connectivity_pb2_grpc, job_pb2
from aemos_core import telemetry
from aemos_core.announcements import device_announcement, outbox_row
from aemos_core.database import Database
from aemos_core.errors import AemosError, invalid
from aemos_core.names import DEVICE_CONNECTIVITY
from aemos_core.outbox import OutboxRows, Row
from aemos_core.rpc import Context
from aemos_core.times import now_ms, rfc3339
from aemos_core.waiting import wait
from sqlalchemy import ColumnElement, delete, false, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_ingest import tables as t
from aemos_ingest.registry_store import AnyRow

log = logging.getLogger("aemos.ingest")

LEASE_SECONDS = 10.0
_SWEEP_SECONDS = 1.0
_FROZEN_SECONDS = 5.0
_AT_ONCE = 500
HEARD = ""
"""Stands for a gateway where a device has no connection but was heard of, for a time of its own."""
_lease = t.gateway_lease.c
_place = t.device_connection.c
Place = tuple[int, str]
"""A device, and the gateway that it is connected to."""


class Connectivity(connectivity_pb2_grpc.ConnectivityServiceServicer):
    """A component and a servicer: takes reports, and takes the devices of gateways that are gone offline.

    Any number of processes may do so: a device changes under its row's lock, and only when it is not so already.
    """

    def __init__(self, database: Database, outbox: OutboxRows, lease_seconds: float = LEASE_SECONDS) -> None:
        self._database = database
        self._outbox = outbox
        self._lease_seconds = lease_seconds

    async def ReportConnections(
        self, request: pb.ReportConnectionsRequest, context: Context
    ) -> pb.ReportConnectionsResponse:
        """Renews the lease and takes the changes; says when there was no lease."""
        if not 0 < len(request.gateway_id) <= 32:
            raise invalid("gatewayId", "must have 1 to 32 characters")
        rows: list[Row] = []
        async with self._database.write() as connection:
            until = now_ms() + int(self._lease_seconds * 1000)
            is_new = await _renew(connection, request.gateway_id, until)
            if request.connected or request.disconnected or request.heard:
                rows = await self._take(connection, request)
        self._outbox.committed(rows)
        return pb.ReportConnectionsResponse(is_new=is_new)

    async def run(self, stop: asyncio.Event) -> None:
        """Sweeps each second, but not before gateways could renew for a whole lease: not after a start, nor after
        the database was away or this process stood still, when every lease looks as if it had ended."""
        since = last = time.monotonic()
        while not await wait(stop, _SWEEP_SECONDS):
            now = time.monotonic()
            if now - last > _FROZEN_SECONDS:
                since = now
            last = now
            try:
                await self.sweep(only_look=now - since < self._lease_seconds)
            except AemosError as error:
                log.warning("nobody goes offline for now: %s", error.detail)
                since = time.monotonic()

    async def sweep(self, *, only_look: bool = False) -> None:
        """Takes offline whom nothing holds online any more."""
        while True:
            async with self._database.read() as connection:
                found = await _orphans(connection, now_ms(), _AT_ONCE)
            if only_look or not found:
                return
            async with self._database.write() as connection:
                # Whoever renews one of these later is told that it is new.
                await connection.execute(delete(t.gateway_lease).where(_lease.until_ms < now_ms()))
            await self._let_go({device_id for device_id, _ in found})

    async def _let_go(self, device_ids: set[int]) -> None:
        async with self._database.write() as connection:
            devices = await _lock_devices(connection, device_ids)
            gone = await _orphans(connection, now_ms(), 4 * _AT_ONCE, device_ids)
            await _disconnect(connection, gone)
            reasons = {device_id: "silent" if gateway == HEARD else "gateway_lost" for device_id, gateway in gone}
            rows = await self._settle(connection, devices, reasons, 0)
        self._outbox.committed(rows)

    async def _take(self, connection: AsyncConnection, request: pb.ReportConnectionsRequest) -> list[Row]:
        gateway, connected, heard = request.gateway_id, set(request.connected), set(request.heard)
        devices = await _lock_devices(connection, {*connected, *heard, *request.disconnected})
        known = {device.id for device in devices}
        places = await _places_of(connection, known)
        new = (one for one in sorted(connected & known) if (one, gateway) not in places)
        await _connect(connection, gateway, new, None)
        if heard:
            until = now_ms() + request.heard_for_ms
            again = (_place.gateway_id == HEARD) & _place.device_id.in_(heard)
            await connection.execute(update(t.device_connection).where(again).values(until_ms=until))
            first = (one for one in sorted(heard & known) if (one, HEARD) not in places)
            await _connect(connection, HEARD, first, until)
        await _disconnect(connection, [(one, gateway) for one in set(request.disconnected) - connected])
        reasons = {**dict.fromkeys(heard, "reading"), **dict.fromkeys(connected, "connected")}
        return await self._settle(connection, devices, reasons, now_ms())

    async def _settle(
        self, connection: AsyncConnection, devices: Sequence[AnyRow], reasons: Mapping[int, str], seen_ms: int
    ) -> list[Row]:
        """Sets and announces what changed of locked devices. Who has no reason here has disconnected; `seen_ms` is 0
        when they were not seen just now."""
        places = await _places_of(connection, {device.id for device in devices})
        online = {device_id for device_id, _ in places}
        changed = [device for device in devices if device.online != (device.id in online)]
        for state in (True, False):
            ids = [device.id for device in changed if (device.id in online) is state]
            values = {"online": state, **({"last_seen_at_ms": seen_ms} if seen_ms else {})}
            if ids:
                await connection.execute(update(t.device).where(t.device.c.id.in_(ids)).values(values))
        told = [
            connectivity_changed(
                device, device.id in online, reasons.get(device.id, "disconnected"), seen_ms or device.last_seen_at_ms
            )
            for device in changed
        ]
        return await self._outbox.add(connection, [outbox_row(told)]) if told else []


def connectivity_changed(device: Any, online: bool, reason: str, seen_ms: int | None) -> job_pb2.Announcement:
    """The announcement of a device that came or went."""
    last_seen = rfc3339(seen_ms) if seen_ms else None
    metadata = {"online": online, "reason": reason, "lastSeenAt": last_seen}
    return device_announcement(DEVICE_CONNECTIVITY, device, metadata, telemetry.NO_CONTEXT)


async def _renew(connection: AsyncConnection, gateway_id: str, until_ms: int) -> bool:
    """Prolongs a lease; True when there was none."""
    mine = update(t.gateway_lease).where(_lease.gateway_id == gateway_id).values(until_ms=until_ms)
    if (await connection.execute(mine)).rowcount:
        return False
    await connection.execute(insert(t.gateway_lease).values(gateway_id=gateway_id, until_ms=until_ms))
    return True


async def _lock_devices(connection: AsyncConnection, device_ids: Iterable[int]) -> Sequence[AnyRow]:
    """Those that exist, locked until the transaction's end: what makes one online changes only under this lock."""
    c = t.device.c
    columns = (c.id, c.id.label("device_id"), c.organization_id, c.uuid.label("device_uuid"), c.online)
    query = select(*columns, c.last_seen_at_ms).where(c.id.in_(list(device_ids))).order_by(c.id)
    return (await connection.execute(query.with_for_update())).all()


async def _places_of(connection: AsyncConnection, device_ids: Collection[int]) -> set[Place]:
    """Where these devices are connected."""
    query = select(_place.device_id, _place.gateway_id).where(_place.device_id.in_(device_ids))
    return {(row.device_id, row.gateway_id) for row in await connection.execute(query)}


async def _connect(
    connection: AsyncConnection, gateway_id: str, device_ids: Iterable[int], until_ms: int | None
) -> None:
    """Makes connections that are not there."""
    rows = [{"device_id": one, "gateway_id": gateway_id, "until_ms": until_ms} for one in device_ids]
    if rows:
        await connection.execute(insert(t.device_connection), rows)


async def _disconnect(connection: AsyncConnection, places: Collection[Place]) -> None:
    """Takes connections away; those that are not there are no mistake."""
    if places:
        key = tuple_(_place.device_id, _place.gateway_id)
        await connection.execute(delete(t.device_connection).where(key.in_(list(places))))


async def _orphans(
    connection: AsyncConnection, at_ms: int, limit: int, device_ids: Collection[int] | None = None
) -> list[Place]:
    """Connections that hold nobody online any more, of some devices when they are given."""
    dead = await _without_lease(connection, at_ms)
    orphan: ColumnElement[bool] = _place.gateway_id.in_(dead) if dead else false()
    query = select(_place.device_id, _place.gateway_id).where(orphan | (_place.until_ms < at_ms))
    if device_ids is not None:
        query = query.where(_place.device_id.in_(device_ids))
    return [(row.device_id, row.gateway_id) for row in await connection.execute(query.limit(limit))]


async def _without_lease(connection: AsyncConnection, at_ms: int) -> set[str]:
    holders = set((await connection.execute(select(_place.gateway_id).distinct())).scalars()) - {HEARD}
    alive = select(_lease.gateway_id).where(_lease.until_ms >= at_ms)
    return holders - set((await connection.execute(alive)).scalars())
