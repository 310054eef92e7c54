"""Who is online, on both databases: one event for each change, whatever dies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aemos_ingest
import pytest
from aemos.v1 import connectivity_pb2 as pb
from aemos.v1 import job_pb2
from aemos_core.database import Database
from aemos_core.errors import AemosError, unavailable
from aemos_core.times import now_ms
from aemos_gateway.presence import Presence
from aemos_ingest import connectivity as module
from aemos_ingest import tables
from aemos_ingest.connectivity import Connectivity
from sqlalchemy import select

from tests.integration.conftest import Open
from tests.support.ingest import Ingest, KeptOutbox, ingest
from tests.support.redis_server import until
from tests.support.registry import call

LEASE_S = 0.4
WITHIN_S = 10.0


@pytest.fixture
async def database(open_owned: Open) -> Database:
    return await open_owned(aemos_ingest)


@pytest.fixture
async def one(database: Database) -> AsyncIterator[Ingest]:
    async with ingest(database) as one:
        yield one


def connectivity(database: Database) -> Connectivity:
    """Of one ingest process."""
    return Connectivity(database, KeptOutbox(database, tables.outbox), LEASE_S)


class Near:
    """Ingest's answers to a gateway, without a network between; `broken` after or before it has taken the call."""

    def __init__(self, taker: Connectivity) -> None:
        self._taker = taker
        self.broken: AemosError | None = None
        self.takes_while_broken = True

    async def ReportConnections(
        self, request: pb.ReportConnectionsRequest, timeout: float
    ) -> pb.ReportConnectionsResponse:
        if self.broken is not None and not self.takes_while_broken:
            raise self.broken
        answer = await self._taker.ReportConnections(request, None)  # type: ignore[arg-type]
        if self.broken is not None:
            raise self.broken
        return answer


def gateway(taker: Connectivity, silent_seconds: float = 300.0) -> Presence:
    """Of one gateway process."""
    return Presence(Near(taker), silent_seconds)  # type: ignore[arg-type]


async def told(database: Database) -> list[tuple[bool, str]]:
    """Every event so far: online, and why."""
    c = tables.outbox.rows.c
    async with database.read() as connection:
        rows = await connection.execute(select(c.payload).where(c.kind == "announce").order_by(c.relay, c.seq))
        batches = [job_pb2.AnnouncementBatch.FromString(row.payload) for row in rows]
    events = [json.loads(one.notification_json) for batch in batches for one in batch.announcements]
    events.sort(key=lambda event: event["timestamp"])
    return [(event["metadata"]["online"], event["metadata"]["reason"]) for event in events]


async def lapsed() -> None:
    """Leases that are not renewed meanwhile are over."""
    at = now_ms() + LEASE_S * 1000
    await until(lambda: now_ms() > at, WITHIN_S)


async def test_a_change_is_told_once(one: Ingest) -> None:
    """However many connections there are, and however often a gateway says so; nothing in between is told."""
    taker, device = connectivity(one.database), one.device_id
    here, there = gateway(taker), gateway(taker)
    for presence in (here, there, here):
        presence.came(device)
        await presence.report()
    row = await one.registry.device()
    assert row.online
    assert abs(row.last_seen_at.ToMilliseconds() - now_ms()) < WITHIN_S * 1000
    for presence in (here, there):
        presence.went(device)
        await presence.report()
    here.went(device)
    here.came(device)  # as when a device connects again before its old connection is found dead
    await here.report()
    assert (await one.registry.device()).online
    here.went(device)
    await here.report()
    assert not (await one.registry.device()).online
    assert await told(one.database) == [(True, "connected"), (False, "disconnected")]


async def test_a_killed_gateway_takes_its_devices_with_it(one: Ingest) -> None:
    """Once, though two ingest processes look; not those that another gateway has, nor those that came back in time."""
    both = [connectivity(one.database) for _ in range(2)]
    devices = [one.device_id] + [(await one.registry.create_device("d", f"d{n}")).id for n in range(40)]
    killed, other = gateway(both[0]), gateway(both[1])
    for device in devices:
        killed.came(device)
    other.came(devices[0])
    await killed.report()
    await other.report()
    other.came(devices[1])
    await lapsed()
    await other.report()
    await asyncio.gather(*(taker.sweep() for taker in both))
    rows = {row.id: row.online for row in [await one.registry.device(str(device)) for device in devices]}
    assert [device for device, online in rows.items() if online] == devices[:2]
    events = await told(one.database)
    assert len(events) == 41 + 39
    assert events[41:] == [(False, "gateway_lost")] * 39


async def test_a_gateway_that_was_stuck_reports_all_again(one: Ingest) -> None:
    """Its lease ended, so ingest forgot its devices."""
    taker = connectivity(one.database)
    stuck = gateway(taker)
    stuck.came(one.device_id)
    await stuck.report()
    await lapsed()
    await taker.sweep()
    assert not (await one.registry.device()).online
    await stuck.report()
    await stuck.report()
    assert (await one.registry.device()).online
    assert [online for online, _ in await told(one.database)] == [True, False, True]


async def test_a_silent_device_goes_offline(one: Ingest) -> None:
    """One that has no connection: after its time, wherever its gateway is; a connection holds it online."""
    taker = connectivity(one.database)
    presence = gateway(taker, silent_seconds=0.3)
    presence.heard(one.device_id)
    await presence.report()
    await taker.sweep()
    assert (await one.registry.device()).online
    await lapsed()
    await taker.sweep()
    assert not (await one.registry.device()).online
    presence.heard(one.device_id)
    presence.came(one.device_id)
    await presence.report()
    assert await told(one.database) == [(True, "reading"), (False, "silent"), (True, "connected")]


@pytest.mark.parametrize("taken", [True, False])
async def test_a_report_of_unknown_outcome_is_made_again(one: Ingest, taken: bool) -> None:
    """Whether ingest took it or not, and whatever happened meanwhile."""
    near = Near(connectivity(one.database))
    near.takes_while_broken = taken
    presence = Presence(near)  # type: ignore[arg-type]

    async def report_in_vain() -> None:
        near.broken = unavailable("away")
        with pytest.raises(AemosError):
            await presence.report()
        near.broken = None

    for first, then, online in ((presence.came, None, True), (presence.went, presence.came, True)):
        first(one.device_id)
        await report_in_vain()
        if then is not None:
            then(one.device_id)
        await presence.report()
        assert (await one.registry.device()).online is online
    presence.went(one.device_id)
    await report_in_vain()
    await presence.report()
    assert not (await one.registry.device()).online


@asynccontextmanager
async def sweeping(taker: Connectivity) -> AsyncIterator[None]:
    """An ingest process at work."""
    stop = asyncio.Event()
    task = asyncio.create_task(taker.run(stop))
    try:
        yield
    finally:
        stop.set()
        await task


async def test_ingest_was_away_for_longer_than_a_lease(one: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every lease looks as if it had ended: nobody goes offline until gateways had the time to renew theirs."""
    monkeypatch.setattr(module, "_SWEEP_SECONDS", 0.02)
    before = connectivity(one.database)
    alive, killed = gateway(before), gateway(before)
    other: Any = await one.registry.create_device("d", "other")
    alive.came(one.device_id)
    killed.came(other.id)
    await alive.report()
    await killed.report()
    await lapsed()
    after = connectivity(one.database)
    alive._connectivity = Near(after)  # type: ignore[assignment]
    async with sweeping(after):
        while (await one.registry.device("other")).online:
            await alive.report()
            await asyncio.sleep(0)
    assert (await one.registry.device()).online
    assert await told(one.database) == [(True, "connected"), (True, "connected"), (False, "gateway_lost")]


async def test_a_device_that_is_deleted_is_no_trouble(one: Ingest) -> None:
    """Its gateway hears later that it is gone."""
    taker = connectivity(one.database)
    presence = gateway(taker)
    presence.came(one.device_id)
    await presence.report()
    await call(one.registry.devices.DeleteDevice, device="freezer-1")
    presence.came(10**6)
    presence.went(one.device_id)
    await presence.report()
    await lapsed()
    await taker.sweep()
    assert await told(one.database) == [(True, "connected")]
