"""rules' stores on both databases: chains with the sensors that they name, and states with their history."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from aemos.v1 import device_state_pb2 as pb
from aemos.v1 import rule_chain_pb2
from aemos_core.database import Database, open_database
from aemos_core.errors import AemosError, Kind
from aemos_core.identity import Caller, set_caller
from aemos_core.rpc import MAX_MESSAGE_BYTES
from aemos_core.times import now_ms
from aemos_rules import chain_store, state_store
from aemos_rules import tables as t
from aemos_rules.chain_api import RuleChainServicer
from aemos_rules.domain import Connection, Node, RuleChain, StateRow
from aemos_rules.locking import locked
from aemos_rules.state_api import DeviceStateServicer
from aemos_rules.state_store import Instance
from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.support.outbox import FakeOutbox

OWN, OTHER = 1, 2
NO_CONTEXT: Any = None
NODES = (
    Node("filter", "hot", {"sensorUUID": "s1", "condition": "value > 25"}),
    Node("transform", "ÄÖ 🌡️", {"action": "convertToFahrenheit", "deep": {"a": [1, 2.5, None, True]}}),
)
CHAIN = RuleChain(0, OWN, "High 🌡️", True, 1, NODES, False, "", "UTC")
SCHEDULED = replace(CHAIN, schedule_enabled=True, cron_expression="0 * * * * *")


async def count(connection: AsyncConnection, table: Any) -> int:
    return int((await connection.execute(select(func.count()).select_from(table))).scalar_one())


async def test_a_chain_comes_back_as_it_was_saved(database: Database) -> None:
    """Nodes with all that their configuration holds, and every field of the schedule."""
    saved = replace(
        SCHEDULED, timezone="Europe/Vienna", interval_seconds=7, interval_anchor_ms=2**50, run_at_ms=5,
        misfire_policy="skip", overlap_policy="queue", schedule_paused=True, schedule_since_ms=6,
    )  # fmt: skip
    async with database.write() as connection:
        chain_id = await chain_store.save(connection, saved, ["s1"])
    async with database.read() as connection:
        assert await chain_store.load(connection, [chain_id, 999]) == [replace(saved, id=chain_id)]


async def test_every_save_is_a_version(database: Database) -> None:
    """An older one comes back with its nodes and connections; all go with the chain."""
    set_caller(Caller(OWN, 7, "admin"))
    ways = (Connection("hot", "true", "ÄÖ 🌡️"), Connection("hot", "false", "ÄÖ 🌡️"))
    async with database.write() as connection:
        chain_id = await chain_store.save(connection, replace(CHAIN, connections=ways), ["s1"])
        await chain_store.save(connection, replace(CHAIN, id=chain_id, version=2, name="second"), ["s1"])
        older = await chain_store.get_version(connection, chain_id, 1)
        assert chain_store.chain_of(older) == replace(CHAIN, id=chain_id, connections=ways)
        assert (await chain_store.get_version(connection, chain_id, 0)).name == "second"
        with pytest.raises(AemosError):
            await chain_store.get_version(connection, chain_id, 3)
        await chain_store.remove(connection, chain_id)
        assert await count(connection, t.rule_chain_version) == 0


async def test_a_sensor_is_judged_by_the_chains_that_name_it(database: Database) -> None:
    """In the order of their ids; those that are disabled or name it no more are left out, and so is a deleted one."""
    async with database.write() as connection:
        ids = [await chain_store.save(connection, CHAIN, sensors) for sensors in (["s1"], ["s1", "s2"], ["s2", "S1"])]
        assert await chain_store.chains_of(connection, ["s1", "s2", "s3"]) == {"s1": ids[:2], "s2": ids[1:]}
        await chain_store.save(connection, replace(CHAIN, id=ids[0], version=2, enabled=False), ["s1"])
        await chain_store.save(connection, replace(CHAIN, id=ids[1], version=2), ["s3"])
        assert await chain_store.chains_of(connection, ["s1", "s2", "s3"]) == {"s2": ids[2:], "s3": [ids[1]]}
        assert await chain_store.sensors_of(connection, ids[2]) == ["S1", "s2"]
        await chain_store.remove(connection, ids[2])
        assert await chain_store.chains_of(connection, ["s2"]) == {}
        assert await count(connection, t.rule_chain_sensor) == 2


async def test_schedules_are_those_of_enabled_chains(database: Database) -> None:
    """Whoever follows the changes hears of each, also of one that ended; who asks too late is told to list."""
    async with database.write() as connection:
        kept = await chain_store.save(connection, SCHEDULED, [])
        gone = await chain_store.save(connection, SCHEDULED, [])
        await chain_store.save(connection, replace(SCHEDULED, enabled=False), [])
        assert [row.id for row in await connection.execute(chain_store.SCHEDULES)] == [kept, gone]
        await chain_store.remove(connection, gone)
        await chain_store.pause(connection, kept, True)
        now = now_ms()
        changes = await chain_store.schedule_changes(connection, now, now)
        assert changes is not None
        assert [(row.id, row.schedule_paused) for row in changes[0]] == [(kept, True)]
        assert gone in changes[1]
        assert await chain_store.schedule_changes(connection, now - 3_600_000, now) is None


async def add_state(connection: AsyncConnection, device_id: int = 7, name: str = "alert") -> int:
    names = {"device_id": device_id, "device_uuid": f"d{device_id}", "name": name, "default_value": "normal"}
    return await state_store.create(connection, {"organization_id": OWN, **names})


async def test_a_state_has_one_name_on_its_device(database: Database) -> None:
    """Letter case counts; another device may use it; another organization finds none of them."""
    api = DeviceStateServicer(database, None, None)  # type: ignore[arg-type]
    async with database.write() as connection:
        ids = [await add_state(connection, 7), await add_state(connection, 8), await add_state(connection, 7, "Alert")]
    of_device = pb.ListDeviceStatesRequest(device_uuid="d7")
    set_caller(Caller(OWN, 7, "admin"))
    assert [state.id for state in (await api.ListDeviceStates(of_device, NO_CONTEXT)).device_states] == [ids[0], ids[2]]
    set_caller(Caller(OTHER, 8, "admin"))
    assert not (await api.ListDeviceStates(of_device, NO_CONTEXT)).device_states
    with pytest.raises(AemosError) as hidden:
        await api.GetDeviceState(pb.GetDeviceStateRequest(id=ids[0]), NO_CONTEXT)
    assert hidden.value.kind is Kind.NOT_FOUND
    with pytest.raises(AemosError) as refused:
        async with database.write() as connection:
            await add_state(connection, 7)
    assert refused.value.kind is Kind.EXISTS


async def test_more_rows_than_one_statement_names_are_found_in_order(database: Database) -> None:
    """A job has up to 2,000 states and chains."""
    names = {"organization_id": OWN, "device_id": 7, "device_uuid": "d7", "default_value": "normal"}
    async with database.write() as connection:
        for number in (2_000, 1, 1_000):
            await state_store.create(connection, {"id": number, "name": str(number), **names})
        for shared in (True, False):
            found = await locked(connection, t.device_state, reversed(range(1, 2_001)), "id", shared=shared)
            assert [row.id for row in found] == [1, 1_000, 2_000]


async def test_several_states_change_in_one_statement(database: Database) -> None:
    """Each gets its own value, watermark and instance; the others stay as they were."""
    async with database.write() as connection:
        ids = [await add_state(connection, device) for device in (1, 2, 3)]
        rows = [StateRow(ids[0], "warning", (2**50, 9, 4)), StateRow(ids[1], "🌡️", (11, 10, 5))]
        changes = [
            Instance(ids[0], "normal", "mild", 2**50 - 1, rule_chain_id=4, data_stream_id=8),
            Instance(ids[0], "mild", "warning", 2**50, rule_chain_id=4, data_stream_id=9),
            Instance(ids[1], "normal", "🌡️", 11, user_id=3),
        ]
        await state_store.change(connection, rows, changes)
    async with database.read() as connection:
        found = await locked(connection, t.device_state, ids)
        assert [StateRow(row.id, row.value, t.watermark_of(row)) for row in found] == [
            *rows,
            StateRow(ids[2], "normal"),
        ]
        assert [row.changed_at_ms for row in found] == [2**50, 11, None]
    set_caller(Caller(OWN, 7, "admin"))
    api = DeviceStateServicer(database, None, None)  # type: ignore[arg-type]
    of_first = pb.ListDeviceStateInstancesRequest(device_state_id=ids[0], page_size=1)
    newest = await api.ListDeviceStateInstances(of_first, NO_CONTEXT)
    of_first.page_token = newest.next_page_token
    history = [*newest.device_state_instances]
    history += (await api.ListDeviceStateInstances(of_first, NO_CONTEXT)).device_state_instances
    assert [(one.old_value, one.value, one.data_stream_id) for one in history] == [
        ("mild", "warning", 9),
        ("normal", "mild", 8),
    ]


async def test_a_state_goes_with_its_history(database: Database) -> None:
    """Instances hang on it."""
    async with database.write() as connection:
        state = await add_state(connection)
        await state_store.change(connection, [StateRow(state, "x", (1, 1, 1))], [Instance(state, "normal", "x", 1)])
        await state_store.remove(connection, state)
        assert await count(connection, t.device_state_instance) == 0


async def test_of_many_who_delete_a_state_or_a_chain_one_did(database: Database) -> None:
    """To the others it is gone, and the audit has it once."""
    set_caller(Caller(OWN, 7, "admin"))
    no_check: Any = None
    states, chains = DeviceStateServicer(database, None, None), RuleChainServicer(database, FakeOutbox(), no_check)  # type: ignore[arg-type]
    async with database.write() as connection:
        state, chain = await add_state(connection, 7), await chain_store.save(connection, CHAIN, ["s1"])
        await connection.execute(delete(t.audit))
    removals = (
        (states.DeleteDeviceState, pb.DeleteDeviceStateRequest(id=state)),
        (chains.DeleteRuleChain, rule_chain_pb2.DeleteRuleChainRequest(id=chain)),
    )
    for removed, (remove, request) in enumerate(removals, 1):
        answers = await asyncio.gather(*(remove(request, NO_CONTEXT) for _ in range(8)), return_exceptions=True)
        assert [answer.kind for answer in answers if isinstance(answer, AemosError)] == [Kind.NOT_FOUND] * 7
        async with database.read() as connection:
            assert await count(connection, t.audit) == removed


async def test_two_judges_of_one_state_take_turns(database: Database, database_url: str) -> None:
    """Who loads it to change it waits for the other, and sees what that one made of it."""
    async with database.write() as connection:
        state = await add_state(connection)

    async def judge(own: Database, reading: int) -> None:
        async with own.write() as connection:
            (row,) = await locked(connection, t.device_state, [state])
            await asyncio.sleep(0)
            became = StateRow(state, row.value + "+", (reading, reading, 1))
            await state_store.change(connection, [became], [Instance(state, row.value, became.value, reading)])

    async with open_database(database_url) as another:
        await asyncio.gather(*(judge(own, n) for n, own in enumerate([database, another] * 4, 1)))
    async with database.read() as connection:
        (row,) = await locked(connection, t.device_state, [state])
        assert row.value == "normal" + "+" * 8
        history = await connection.execute(select(t.device_state_instance))
        assert sorted(one.value for one in history) == ["normal" + "+" * n for n in range(1, 9)]


async def test_pages_of_large_chains_fit_into_a_message(database: Database) -> None:
    """A chain may have a MiB: a page has fewer of them then, and none is left out."""
    set_caller(Caller(OWN, 7, "admin"))
    large = replace(CHAIN, nodes=(Node("filter", "hot", {"condition": "x" * 1_000_000}),))
    async with database.write() as connection:
        ids = [await chain_store.save(connection, large, []) for _ in range(5)]
    api, found, token = RuleChainServicer(database, None, None), list[int](), ""  # type: ignore[arg-type]
    while len(found) < len(ids):
        request = rule_chain_pb2.ListRuleChainsRequest(page_token=token)
        page = await api.ListRuleChains(request, NO_CONTEXT)
        assert page.ByteSize() < MAX_MESSAGE_BYTES
        found += [chain.id for chain in page.rule_chains]
        token = page.next_page_token
    assert (found, token) == (ids, "")
