"""What rules keeps of schedules, on both kinds of database: what is saved, what changed, and pauses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from aemos.v1 import sensor_pb2
from aemos_core.database import Database
from aemos_core.errors import AemosError
from aemos_core.identity import Caller, set_caller
from aemos_core.outbox import Row
from aemos_core.paging import Page
from aemos_core.times import now_ms
from aemos_rules.chain_service import RuleChains
from aemos_rules.domain import Node, RuleChain
from sqlalchemy.ext.asyncio import AsyncConnection

NODES = (Node("transform", "t", {"action": "convertToFahrenheit"}),)
THROTTLE = Node("filter", "at most once", {"kind": "throttle", "seconds": 60})
WINDOW = Node("transform", "w", {"action": "window", "seconds": 60})


class NoSensors:
    """ingest, of which chains without sensors ask nothing else."""

    async def DescribeSensors(self, request: sensor_pb2.DescribeSensorsRequest) -> sensor_pb2.DescribeSensorsResponse:
        return sensor_pb2.DescribeSensorsResponse()


class NoOutbox:
    """Sends nothing."""

    async def add(self, connection: AsyncConnection, rows: Sequence[Row]) -> list[Row]:
        return list(rows)

    def committed(self, rows: Sequence[Row]) -> None:
        """Nobody listens."""


@pytest.fixture
def chains(database: Database) -> RuleChains:
    set_caller(Caller(1, 7, "admin"))
    return RuleChains(database, NoOutbox(), NoSensors())  # type: ignore[arg-type]


def chain(**fields: object) -> RuleChain:
    return replace(RuleChain(0, 1, "c", True, 1, NODES, True, "@hourly", "UTC"), **fields)  # type: ignore[arg-type]


async def test_changes_are_told_with_what_is_gone(chains: RuleChains) -> None:
    """New, edited, paused and deleted schedules; a copy that asks too late is told to list everything."""
    since = now_ms()
    kept, gone, off = [(await chains.create(chain())).id for _ in range(3)]
    await chains.delete(gone)
    await chains.update(off, {"schedule_enabled": False})
    await chains.pause(kept, True)
    found, now = await chains.schedule_changes(since)
    assert found is not None
    rows = {row.id: row for row in found[0]}
    assert kept in rows
    assert rows[kept].schedule_paused
    assert {gone, off} <= set(found[1])
    assert now >= since
    assert (await chains.schedule_changes(since - 2 * 3_600_000))[0] is None
    assert (await chains.schedule_changes(since + 3_600_000))[0] is None
    listed = (await chains.schedules(Page(1_000, 0)))[0]
    assert kept in [row.id for row in listed]
    assert off not in [row.id for row in listed]


async def test_it_counts_from_the_time_of_a_change(chains: RuleChains) -> None:
    """An edit of the schedule, a pause and its end start it anew; a change of the name does not."""
    saved = await chains.create(chain())
    renamed = await chains.update(saved.id, {"name": "d"})
    assert renamed.schedule_since_ms == saved.schedule_since_ms
    edited = await chains.update(saved.id, {"misfire_policy": "skip"})
    assert edited.schedule_since_ms > saved.schedule_since_ms
    paused = await chains.pause(saved.id, True)
    again = await chains.pause(saved.id, True)
    resumed = await chains.pause(saved.id, False)
    assert edited.schedule_since_ms < paused.schedule_since_ms == again.schedule_since_ms < resumed.schedule_since_ms


async def test_an_interval_keeps_its_anchor(chains: RuleChains) -> None:
    """The time of the save unless one was given, and it stays."""
    saved = await chains.create(chain(cron_expression="", interval_seconds=60))
    assert saved.interval_anchor_ms % 1000 == 0
    assert abs(saved.interval_anchor_ms - now_ms()) < 5_000
    faster = await chains.update(saved.id, {"interval_seconds": 30})
    assert faster.interval_anchor_ms == saved.interval_anchor_ms


@pytest.mark.parametrize(
    ("fields", "locations"),
    [
        ({"cron_expression": ""}, ["cronExpression"]),
        ({"interval_seconds": 5}, ["cronExpression", "intervalSeconds"]),
        ({"cron_expression": "0 0 31 2 *"}, ["cronExpression"]),
        ({"cron_expression": "", "run_at_ms": 1}, ["runAt"]),
        ({"timezone": "Mars"}, ["timezone"]),
        ({"misfire_policy": "x", "overlap_policy": "y"}, ["misfirePolicy", "overlapPolicy"]),
        ({"nodes": (*NODES, THROTTLE, WINDOW)}, ["nodes.1.config.kind", "nodes.2.config.action"]),
    ],
)
async def test_refusals_name_the_field(chains: RuleChains, fields: dict[str, object], locations: list[str]) -> None:
    """A schedule that could never run as meant is not saved; nor are nodes that have no readings to remember."""
    with pytest.raises(AemosError) as refused:
        await chains.create(chain(**fields))
    assert [mistake.loc for mistake in refused.value.errors] == locations
