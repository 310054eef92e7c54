"""Retention on both databases, and the organization's setting of it."""

from __future__ import annotations

import asyncio

import pytest
from aemos_core.errors import AemosError
from aemos_core.identity import Caller, set_caller
from aemos_core.sweeping import forget
from aemos_core.times import now_ms
from aemos_ingest import tables
from aemos_ingest.identity_api import IdentityServicer
from aemos_ingest.registry_store import changes_since
from aemos_ingest.retention import DAY_MS, Retention, share_after
from sqlalchemy import func, select

from tests.support.history_world import World, row
from tests.support.redis_server import until
from tests.support.registry import call

pytestmark = pytest.mark.asyncio
BEGIN = 1_790_000_000_000
"""In September 2026, ms since 1970."""


class Held:
    """A lease that this process has."""

    def holds(self, partition: int) -> bool:
        return True


class Lost:
    """A lease that another one has."""

    def holds(self, partition: int) -> bool:
        return False


def identity(world: World) -> IdentityServicer:
    return IdentityServicer(world.database, None)  # type: ignore[arg-type]


async def left(world: World) -> dict[int, int]:
    c = tables.data_stream.c
    query = select(c.telemetry_data_id, func.count()).group_by(c.telemetry_data_id)
    async with world.database.read() as connection:
        return {variable: count for variable, count in (await connection.execute(query)).all()}


async def test_retention_deletes_what_is_too_old_and_what_is_gone(world: World) -> None:
    """In steps; of an organization that keeps all, nothing; of a variable that was deleted, everything."""
    now, day = now_ms(), DAY_MS
    old = [row(i, now - 8 * day - i // 2, v) for v in (1, 3, 99) for i in range(2_500)]
    young = [row(9_000, now - 6 * day, v) for v in (1, 3, 99)]
    await world.store(*old, *young, told=False)
    set_caller(Caller(1, 1, "admin"))
    await call(identity(world).UpdateOrganization, retention_days=7)
    stop = asyncio.Event()
    assert not await Retention(world.database, Lost(), 1.0).round(stop)
    assert sum((await left(world)).values()) == 7_503
    assert await Retention(world.database, Held(), 1.0).round(stop)
    assert await left(world) == {1: 1, 3: 2_501}


class HeldFor:
    """A lease that is lost after it was asked so often."""

    def __init__(self, times: int) -> None:
        self.times = times

    def holds(self, partition: int) -> bool:
        self.times -= 1
        return self.times >= 0


async def test_retention_ends_with_its_lease(world: World) -> None:
    """Between two steps: another process may have begun."""
    await world.store(*[row(i, BEGIN, 99) for i in range(3_000)], told=False)
    assert not await Retention(world.database, HeldFor(2), 1.0).round(asyncio.Event())
    assert await left(world) == {99: 2_000}


async def test_retention_stops_at_once_and_goes_on_after_a_restart(world: World) -> None:
    """It rests 99 times as long as it worked here, and a stop ends the rest."""
    await world.store(*[row(i, BEGIN, 99) for i in range(3_000)], told=False)
    stop = asyncio.Event()
    running = asyncio.create_task(Retention(world.database, Held(), 0.01).run(stop))
    counts: list[int] = []

    async def watch() -> None:
        while not counts or counts[-1] > 2_000:
            counts.append((await left(world)).get(99, 0))

    async with asyncio.timeout(20):
        await watch()
    stop.set()
    await until(running.done, 5)
    assert 0 < counts[-1] <= 2_000
    assert await Retention(world.database, Held(), 1.0).round(asyncio.Event())
    assert await left(world) == {}


async def test_a_round_that_does_not_end_takes_more_of_the_time() -> None:
    """Or what is stored faster than a twentieth of a statement deletes would never be kept for its days only."""
    minutes = (0, 9, 10, 20, 30, 40, 10_000)
    assert [share_after(minute * 60.0) for minute in minutes] == [0.05, 0.05, 0.1, 0.2, 0.4, 0.5, 0.5]
    assert share_after(10_000.0, 1.0) == 1.0


async def test_changes_of_the_registry_are_forgotten(world: World) -> None:
    """Those from before, a thousand at a time; a device whose change is kept is still told."""
    c, begin = tables.registry_change.c, now_ms() - DAY_MS
    await world.add(tables.registry_change, [{"device_id": n, "at_ms": begin + n // 1_100} for n in range(1_101)])
    assert [await forget(world.database, c.at_ms, begin + 1) for _ in range(3)] == [1_000, 100, 0]
    async with world.database.read() as connection:
        assert await changes_since(connection, begin) == [1_100]


async def test_an_organization_is_changed_within_bounds(world: World) -> None:
    """Days that cannot be are refused; what is not given stays."""
    set_caller(Caller(1, 1, "admin"))
    servicer = identity(world)
    assert (await call(servicer.UpdateOrganization, name="Plant")).name == "Plant"
    assert (await call(servicer.UpdateOrganization, retention_days=30)).retention_days == 30
    assert (await call(servicer.GetOrganization)).name == "Plant"
    for days in (-1, 40_000):
        with pytest.raises(AemosError) as refused:
            await call(servicer.UpdateOrganization, retention_days=days)
        assert refused.value.errors[0].loc == "retentionDays"
