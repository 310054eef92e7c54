"""What a worker records of runs, and what names them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from aemos.v1 import chain_run_pb2, job_pb2
from aemos_core.database import Database
from aemos_core.identity import Caller, set_caller
from aemos_core.names import rule_chain_room
from aemos_core.outbox_senders import ANNOUNCE
from aemos_core.redis_link import RedisClient
from aemos_core.rpc import MAX_MESSAGE_BYTES
from aemos_core.sweeping import kept_for
from aemos_rules import chain_store, run_records, state_store
from aemos_rules import tables as t
from aemos_rules.activity import Activities, activity_key
from aemos_rules.domain import Connection, RuleChain
from aemos_rules.engine import RunResult
from aemos_rules.run_api import ChainRunServicer
from redis.asyncio.client import Pipeline
from sqlalchemy import select, update

from tests.support.play import SENSOR, T0, act, node, reading
from tests.support.rule_worker import Worker, save_chain

NOTHING: Any = None


async def add_state(database: Database) -> int:
    state = {"organization_id": 1, "device_id": 42, "device_uuid": "abc-123", "name": "s", "default_value": "normal"}
    async with database.write() as connection:
        return await state_store.create(connection, state)


async def rows_of(database: Database, table: Any) -> list[Any]:
    async with database.read() as connection:
        return list((await connection.execute(select(table).order_by(table.c.id))).all())


async def test_a_value_that_cannot_be_read_fails_no_other_reading(database: Database, redis: RedisClient) -> None:
    """Python reads no integer of over 4,300 digits. The others of the job are judged as if it were not there."""
    state = await add_state(database)
    await save_chain(database, node("condition", condition="value > 25"), act("a", state))
    unreadable = reading(0, 1)._replace(variable_type="json", value="7" * 4_301)
    await Worker(database, redis).evaluate(unreadable, reading(30, 2))
    assert [change.value for change in await rows_of(database, t.device_state_instance)] == ["warning"]


async def test_a_change_names_the_run_that_made_it(
    database: Database, redis: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two chains and readings of one job each its own; none where the run was only counted."""
    state = await add_state(database)
    for condition, value in (("value > 25", "warning"), ("true", "seen")):
        await save_chain(database, node("condition", condition=condition), act("a", state, value))
    worker = Worker(database, redis)
    await worker.evaluate(reading(30, 1), reading(20, 2), reading(31, 3))
    runs = {(run.rule_chain_id, run.data_stream_id): run.id for run in await rows_of(database, t.chain_run)}
    changes = await rows_of(database, t.device_state_instance)
    assert [change.value for change in changes] == ["warning", "seen", "warning", "seen"]
    assert [c.chain_run_id for c in changes] == [runs[c.rule_chain_id, c.data_stream_id] for c in changes]
    monkeypatch.setattr(run_records, "MOST_A_SECOND", 0)
    await worker.evaluate(reading(30, 4))
    assert [c.chain_run_id for c in (await rows_of(database, t.device_state_instance))[4:]] == [0, 0]


async def test_the_scheduler_hears_which_run_it_was(database: Database, redis: RedisClient) -> None:
    """The one that changed the state, or failed; none for one that changed nothing."""
    state = await add_state(database)
    change = await save_chain(database, act("a", state))
    fails = await save_chain(database, node("sendNotification", "n", "action", message="hello"))
    worker = Worker(database, redis)
    due = [(change, T0), (change, T0 + 1000), (fails, T0)]
    ends = await worker.fire(
        *(job_pb2.ScheduledRun(rule_chain_id=i, organization_id=1, planned_at_ms=at, manual=True) for i, at in due)
    )
    told = {(end.rule_chain_id, end.planned_at_ms): end for end in ends}
    assert [told[each].outcome for each in due] == ["completed", "completed", "failed"]
    runs = {run.rule_chain_id: run.id for run in await rows_of(database, t.chain_run)}
    assert [told[each].run_id for each in due] == [str(runs[change]), "", str(runs[fails])]
    (changed,) = await rows_of(database, t.device_state_instance)
    assert changed.chain_run_id == runs[change]


async def test_a_loop_is_cut_marked_and_told(database: Database, redis: RedisClient) -> None:
    """Five deep nothing follows, though a failure has a way; those of an hour have one uuid, so one is heard."""
    state = await add_state(database)
    nodes = (node("saveReading", "again", "action", variableName="f", value="value"), act("a", state))
    ways = (Connection("again", "failure", "a"),)
    chain = await save_chain(database, *nodes, connections=ways, name="ping")
    worker = Worker(database, redis)
    for number in range(1, 4):
        await worker.evaluate(
            reading(1, number, number)._replace(depth=5), reading(1, number + 5, number + 5)._replace(depth=5)
        )
    runs = await rows_of(database, t.chain_run)
    assert {(run.outcome, run.rule_chain_id) for run in runs} == {("loop", chain)}
    assert not await rows_of(database, t.device_state_instance)
    assert {row.kind for row in worker.outbox.sent} == {ANNOUNCE}
    batches = [job_pb2.AnnouncementBatch.FromString(row.payload).announcements for row in worker.outbox.sent]
    assert [len(batch) for batch in batches] == [1, 1, 1]
    told = [batch[0] for batch in batches]
    assert len({one.uuid for one in told}) <= 2  # the hour may end meanwhile
    assert list(told[0].rooms) == [rule_chain_room(chain)]
    assert json.loads(told[0].notification_json)["metadata"] == {
        "change": "loop",
        "ruleChainId": chain,
        "name": "ping",
        "error": "node 'again': a loop: 5 chains led to one another",
    }


async def test_runs_do_not_pile_up(database: Database, redis: RedisClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain keeps its newest, and each goes when it is a week old."""
    monkeypatch.setattr(run_records, "MOST_OF_A_CHAIN", 3)
    state = await add_state(database)
    worker = Worker(database, redis)
    crowded = await save_chain(database, node("condition", condition="value > 2"), act("a", state, "a"))
    await save_chain(database, node("condition", condition="value < 3"), act("b", state, "b"))
    await worker.evaluate(*(reading(1 + 2 * (number % 2), number, number) for number in range(1, 11)))
    runs = await rows_of(database, t.chain_run)
    assert len(runs) == 10
    assert await run_records.thin_out(database) == 4
    kept = [run.id for run in await rows_of(database, t.chain_run)]
    of_crowded = [run.id for run in runs if run.rule_chain_id == crowded]
    others = [run.id for run in runs if run.rule_chain_id != crowded]
    assert kept == sorted([*of_crowded[-3:], *others[-3:]])
    async with database.write() as connection:
        old = update(t.chain_run).where(t.chain_run.c.rule_chain_id == crowded)
        await connection.execute(old.values(recorded_at_ms=1))
    week_old = kept_for(database, t.chain_run.c.recorded_at_ms, run_records.KEPT_MS)
    assert await week_old() == 3
    assert crowded not in {run.rule_chain_id for run in await rows_of(database, t.chain_run)}
    assert not await week_old()
    assert await run_records.thin_out(database) == 0


async def test_a_chain_that_is_saved_again_has_all_its_errors_before_it(database: Database, redis: RedisClient) -> None:
    """It is suspended at the 20th error in a row; saved, it runs until it has failed as often again."""
    chain_id = await save_chain(database, node("condition", condition="[value][int(value)] > 0"))
    worker = Worker(database, redis)

    async def fail(first: int, count: int) -> bool:
        await worker.evaluate(*(reading(1, number, number) for number in range(first, first + count)))
        (row,) = await rows_of(database, t.rule_chain)
        return bool(row.suspended_at_ms)

    assert [await fail(1, run_records.ERRORS_TO_SUSPEND - 1), await fail(30, 1)] == [False, True]
    async with database.write() as connection:
        (chain,) = await chain_store.load(connection, [chain_id])
        await chain_store.save(connection, replace(chain, version=2, enabled=True), [SENSOR])
    await redis.flushall()
    worker.index.forget()
    assert [await fail(40, run_records.ERRORS_TO_SUSPEND - 1), await fail(70, 1)] == [False, True]


async def test_counts_wait_for_redis(redis: RedisClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written is written later, with what came meanwhile."""
    activities, stop = Activities(redis), asyncio.Event()
    activity = activities.of(RuleChain(9, 1))
    stop.set()  # it writes once, at the end

    async def refuse(_: Pipeline) -> None:
        activity.note(None, RunResult("fired"))
        raise ConnectionError

    with monkeypatch.context() as broken:
        broken.setattr(Pipeline, "execute", refuse)
        activity.note(None, RunResult("fired"))
        await activities.run(stop)
    for expected in (b"2", b"2"):
        await activities.run(stop)
        assert await redis.hget(activity_key(9), "fired") == expected


async def test_pages_of_large_runs_fit_into_a_message(database: Database, redis: RedisClient) -> None:
    """Each node shows the reading's value, up to 64 KiB: a page has fewer of them then, and none is left out."""
    set_caller(Caller(1, 7, "admin"))
    nodes = [node("saveReading", f"n{number}", "action", variableName="f", value="1") for number in range(5)]
    chain_id, count = await save_chain(database, *nodes, node("condition", condition="true")), 30
    await Worker(database, redis).evaluate(*(reading("x" * 60_000, number) for number in range(1, count + 1)))
    api = ChainRunServicer(database, redis, NOTHING, NOTHING, NOTHING, 1)
    found, token = list[int](), "0"
    while token:
        request = chain_run_pb2.ListChainRunsRequest(rule_chain_id=chain_id, page_token=token.removeprefix("0"))
        page = await api.ListChainRuns(request, NOTHING)
        assert page.ByteSize() < MAX_MESSAGE_BYTES
        found += [run.id for run in page.chain_runs]
        token = page.next_page_token
    assert found == sorted(found, reverse=True)
    assert len(found) == count


async def test_a_suspended_chain_does_not_run_on_its_schedule(database: Database, redis: RedisClient) -> None:
    """Nor by hand or by another chain, until it is saved again."""
    chain_id = await save_chain(database, node("sendNotification", "n", "action", message="hello"))
    other = await save_chain(database, node("runChain", "other", "action", ruleChainId=chain_id))
    worker = Worker(database, redis)

    async def fire(chain: int, at: int) -> str:
        run = job_pb2.ScheduledRun(rule_chain_id=chain, organization_id=1, planned_at_ms=T0 + at, manual=True)
        (end,) = await worker.fire(run)
        return end.outcome

    assert {await fire(chain_id, at) for at in range(run_records.ERRORS_TO_SUSPEND)} == {"failed"}
    worker.index.forget()
    assert await fire(chain_id, 100) == "dropped"
    assert await fire(other, 101) == "completed"
    assert await worker.resume() == 1
    assert len(await rows_of(database, t.chain_run)) == run_records.ERRORS_TO_SUSPEND
    async with database.write() as connection:
        (chain,) = await chain_store.load(connection, [chain_id])
        await chain_store.save(connection, replace(chain, version=2, enabled=True), [])
    worker.index.forget()
    assert await fire(chain_id, 102) == "failed"


async def test_a_worker_that_stops_writes_all_its_counts(redis: RedisClient) -> None:
    """However many chains have run."""
    activities, stop, chains = Activities(redis), asyncio.Event(), range(1, 251)
    for chain_id in chains:
        activities.of(RuleChain(chain_id, 1)).note(None, RunResult("fired"))
    stop.set()
    await activities.run(stop)
    assert [await redis.hget(activity_key(chain_id), "fired") for chain_id in chains] == [b"1"] * len(chains)
