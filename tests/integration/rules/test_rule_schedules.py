"""What rules keeps of schedules, on both kinds of database: what is saved, what changed, and pauses."""

from __future__ import annotations

from typing import Any

import pytest
from aemos.v1 import rule_chain_pb2 as pb
from aemos.v1 import sensor_pb2
from aemos_core.database import Database
from aemos_core.errors import AemosError, Kind
from aemos_core.identity import Caller, set_caller
from aemos_core.times import now_ms
from aemos_rules.chain_api import RuleChainServicer
from aemos_rules.chain_check import ChainCheck
from aemos_rules.domain import RuleChain
from aemos_rules.engine import CompiledChain
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support.outbox import FakeOutbox

NO_CONTEXT: Any = None


def node(type_: str, name: str, **config: object) -> pb.Node:
    made = pb.Node(type=type_, name=name)
    made.config.update(config)  # type: ignore[arg-type]
    return made


NODES = (node("transform", "t", action="convertToFahrenheit"),)
THROTTLE = node("filter", "at most once", kind="throttle", seconds=60)
WINDOW = node("transform", "w", action="window", seconds=60)


class NoSensors:
    """ingest, of which chains without sensors ask nothing else."""

    async def DescribeSensors(self, request: sensor_pb2.DescribeSensorsRequest) -> sensor_pb2.DescribeSensorsResponse:
        return sensor_pb2.DescribeSensorsResponse()


class Chains:
    """The service, called as users and scheduler call it."""

    def __init__(self, database: Database) -> None:
        check = ChainCheck(database, NoSensors())  # type: ignore[arg-type]
        self.api = RuleChainServicer(database, FakeOutbox(), check)

    async def create(self, **fields: Any) -> pb.RuleChain:
        chain = {"name": "c", "nodes": NODES, "schedule_enabled": True, "cron_expression": "@hourly"} | fields
        return await self.api.CreateRuleChain(pb.CreateRuleChainRequest(**chain), NO_CONTEXT)

    async def update(self, chain_id: int, **fields: Any) -> pb.RuleChain:
        return await self.api.UpdateRuleChain(pb.UpdateRuleChainRequest(id=chain_id, **fields), NO_CONTEXT)

    async def pause(self, chain_id: int, paused: bool) -> pb.Schedule:
        request = pb.SetSchedulePausedRequest(organization_id=1, user_id=7, rule_chain_id=chain_id, paused=paused)
        return (await self.api.SetSchedulePaused(request, NO_CONTEXT)).schedule

    async def changes(self, since_ms: int) -> pb.ListScheduleChangesResponse:
        return await self.api.ListScheduleChanges(pb.ListScheduleChangesRequest(since_ms=since_ms), NO_CONTEXT)

    async def schedules(self) -> dict[int, pb.Schedule]:
        listed = await self.api.ListSchedules(pb.ListSchedulesRequest(page_size=1_000), NO_CONTEXT)
        return {schedule.rule_chain_id: schedule for schedule in listed.schedules}

    async def since(self, chain: pb.RuleChain) -> int:
        return (await self.schedules())[chain.id].since_ms


@pytest.fixture
def chains(database: Database) -> Chains:
    set_caller(Caller(1, 7, "admin"))
    return Chains(database)


async def test_changes_are_told_with_what_is_gone(chains: Chains) -> None:
    """New, edited, paused and deleted schedules; a copy that asks too late is told to list everything."""
    since = now_ms()
    kept, gone, off = [(await chains.create()).id for _ in range(3)]
    await chains.api.DeleteRuleChain(pb.DeleteRuleChainRequest(id=gone), NO_CONTEXT)
    await chains.update(off, schedule_enabled=False)
    await chains.pause(kept, True)
    found = await chains.changes(since)
    assert not found.incomplete
    schedules = {schedule.rule_chain_id: schedule for schedule in found.schedules}
    assert kept in schedules
    assert schedules[kept].paused
    assert {gone, off} <= set(found.removed_rule_chain_ids)
    assert found.now_ms >= since
    assert (await chains.changes(since - 2 * 3_600_000)).incomplete
    assert (await chains.changes(since + 3_600_000)).incomplete
    listed = await chains.schedules()
    assert kept in listed
    assert off not in listed


async def test_it_counts_from_the_time_of_a_change(chains: Chains) -> None:
    """An edit of the schedule, a pause and its end start it anew; a change of the name does not."""
    saved = await chains.create()
    first = await chains.since(saved)
    await chains.update(saved.id, name="d")
    assert await chains.since(saved) == first
    await chains.update(saved.id, misfire_policy="skip")
    edited = await chains.since(saved)
    assert edited > first
    paused = await chains.pause(saved.id, True)
    again = await chains.pause(saved.id, True)
    resumed = await chains.pause(saved.id, False)
    assert edited < paused.since_ms == again.since_ms < resumed.since_ms


async def test_an_interval_keeps_its_anchor(chains: Chains) -> None:
    """The time of the save unless one was given, and it stays."""
    saved = await chains.create(cron_expression="", interval_seconds=60)
    assert saved.interval_anchor.nanos == 0
    assert abs(saved.interval_anchor.ToMilliseconds() - now_ms()) < 5_000
    faster = await chains.update(saved.id, interval_seconds=30)
    assert faster.interval_anchor == saved.interval_anchor


async def test_another_timing_takes_the_place_of_the_one_before(chains: Chains) -> None:
    """A chain has one; what an update does not give stays as it was."""
    saved = await chains.create(timezone="Europe/Vienna", enabled=False)
    changed = await chains.update(saved.id, interval_seconds=30)
    assert (changed.cron_expression, changed.interval_seconds, changed.version) == ("", 30, 2)
    assert (changed.timezone, changed.enabled, changed.nodes) == ("Europe/Vienna", False, saved.nodes)
    back = await chains.update(saved.id, cron_expression="@daily", enabled=True)
    assert (back.cron_expression, back.interval_seconds, back.enabled) == ("@daily", 0, True)
    assert not back.HasField("interval_anchor")


async def test_chains_are_listed_a_page_at_a_time(chains: Chains) -> None:
    """In the order of their ids, behind the token's; those of others do not exist."""
    ids = [(await chains.create()).id for _ in range(4)]
    request = pb.ListRuleChainsRequest(page_size=2, page_token=str(ids[0]))
    page = await chains.api.ListRuleChains(request, NO_CONTEXT)
    assert [chain.id for chain in page.rule_chains] == ids[1:3]
    assert page.next_page_token == str(ids[2])
    set_caller(Caller(2, 8, "admin"))
    assert not (await chains.api.ListRuleChains(pb.ListRuleChainsRequest(), NO_CONTEXT)).rule_chains
    with pytest.raises(AemosError) as hidden:
        await chains.api.GetRuleChain(pb.GetRuleChainRequest(id=ids[0]), NO_CONTEXT)
    assert hidden.value.kind is Kind.NOT_FOUND


@pytest.mark.parametrize(
    ("fields", "locations"),
    [
        ({"cron_expression": ""}, ["cronExpression"]),
        ({"interval_seconds": 5}, ["cronExpression", "intervalSeconds"]),
        ({"cron_expression": "0 0 31 2 *"}, ["cronExpression"]),
        ({"cron_expression": "", "run_at": Timestamp(seconds=1)}, ["runAt"]),
        ({"timezone": "Mars"}, ["timezone"]),
        ({"misfire_policy": "x", "overlap_policy": "y"}, ["misfirePolicy", "overlapPolicy"]),
        ({"nodes": (*NODES, THROTTLE, WINDOW)}, ["nodes.1.config.kind", "nodes.2.config.action"]),
    ],
)
async def test_refusals_name_the_field(chains: Chains, fields: dict[str, Any], locations: list[str]) -> None:
    """A schedule that could never run as meant is not saved; nor are nodes that have no readings to remember."""
    with pytest.raises(AemosError) as refused:
        await chains.create(**fields)
    assert [mistake.loc for mistake in refused.value.errors] == locations


async def test_a_pause_is_not_overtaken_by_a_save(chains: Chains, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who saves a chain that was paused meanwhile is told so, and the pause stands; once more, and it is saved."""
    chain = await chains.create()
    checked = ChainCheck.checked

    async def slowly(check: ChainCheck, draft: RuleChain) -> CompiledChain:
        await chains.pause(chain.id, True)
        return await checked(check, draft)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(ChainCheck, "checked", slowly)
        with pytest.raises(AemosError) as refused:
            await chains.update(chain.id, name="another")
    assert refused.value.kind is Kind.STALE
    assert (await chains.schedules())[chain.id].paused
    saved = await chains.update(chain.id, name="another")
    assert (saved.name, saved.schedule_paused) == ("another", True)
