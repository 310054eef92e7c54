"""What nodes remember survives kills before the commit, repeated jobs, other workers, and a Redis that forgets all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest
from aemos.v1 import data_stream_pb2, device_pb2, history_pb2, sensor_pb2
from aemos_core.database import Database
from aemos_core.redis_link import RedisClient
from aemos_core.times import now_ms, to_timestamp
from aemos_rules import state_store
from aemos_rules import tables as t
from aemos_rules.deadlines import POLL_SECONDS
from aemos_rules.domain import Node, Reading
from sqlalchemy import func, select

from tests.support.play import SENSOR, Play, act, chain, node
from tests.support.redis_server import until
from tests.support.rule_worker import Worker, save_chain

SECONDS = 0.4
REMEMBERING = [
    node("change", amount=2),
    node("hysteresis", **{"raise": 5, "clear": 3}),
    node("repeated", times=2, seconds=10, condition="value > 3"),
    node("throttle", seconds=2),
    node("condition", "previous", condition="value > previous"),
    node("held", condition="value > 3", seconds=2),
    node("window", "window", "transform", seconds=3, allowedLatenessSeconds=100),
    node("absence", seconds=1000),
]
VALUES = (1, 4, 6, 6, 2, 7, 3, 5, 9, 9)


async def add_state(database: Database) -> int:
    names = {"device_id": 42, "device_uuid": "abc-123", "name": "alert", "default_value": "normal"}
    async with database.write() as connection:
        return await state_store.create(connection, {"organization_id": 1, **names})


def sent(values: Sequence[float], at: int, apart_ms: int = 1000) -> list[Reading]:
    """Readings one after the other."""
    return [
        Reading(number, 1, 42, "abc-123", 7, SENSOR, 5, "temperature", "number", value, at + number * apart_ms, b"")
        for number, value in enumerate(values, 1)
    ]


async def memory_of(database: Database) -> dict[str, bytes]:
    async with database.read() as connection:
        return {row.node: bytes(row.value) for row in (await connection.execute(select(t.node_memory))).all()}


async def waiting(database: Database) -> int:
    async with database.read() as connection:
        return int((await connection.execute(select(func.count()).select_from(t.deadline))).scalar_one())


async def changes_of(database: Database, state: int) -> list[tuple[int, int]]:
    async with database.read() as connection:
        of = t.device_state_instance.c
        query = select(of.at_ms, of.data_stream_id).where(of.device_state_id == state).order_by(of.id)
        return [(at, reading) for at, reading in await connection.execute(query)]


def counted(play: Play) -> dict[str, list[object]]:
    """What was remembered, without what depends on the clock."""
    return {cell.node: _timeless(value) for cell, value in play.memory.items()}


def _timeless(value: bytes) -> list[object]:
    kind, *fields = msgspec.msgpack.decode(value)
    if kind in ("held", "absence", "window"):
        del fields[3]  # the deadline
    return [kind, *fields[: 2 if kind == "absence" else None]]


@pytest.mark.parametrize("each", REMEMBERING, ids=lambda each: each.name)
async def test_killed_workers_and_flushes_change_nothing(database: Database, redis: RedisClient, each: Node) -> None:
    """Each job is judged by a worker that dies before it commits, by another that repeats it, and once more by a third;
    Redis forgets everything in between: what is remembered and asserted is what one undisturbed worker would."""
    state = await add_state(database)
    await save_chain(database, each, act(state=state))
    readings = sent(VALUES, now_ms() // 1000 * 1000)
    undisturbed = Play(chain(each, act(state=state)))
    for place in range(0, len(readings), 2):
        job = readings[place : place + 2]
        await Worker(database, redis).die(*job)
        worker = Worker(database, redis)
        await worker.evaluate(*job)
        await worker.evaluate(*job)
        await redis.flushall()
        await Worker(database, redis).evaluate(*job)
        for one in job:
            undisturbed.send(one)
    found = await memory_of(database)
    assert {name: _timeless(value) for name, value in found.items()} == counted(undisturbed)
    first = [(e.watermark[0], e.watermark[1]) for e in undisturbed.asserted][:1]
    assert await changes_of(database, state) == first
    assert await waiting(database) == len(undisturbed.deadlines)


async def test_a_worker_that_was_replaced_judges_again(database: Database, redis: RedisClient) -> None:
    """Two workers believe that the partition is theirs: neither loses what the other one counted."""
    await save_chain(database, node("repeated", times=9, seconds=100), act(state=await add_state(database)))
    first, second = Worker(database, redis), Worker(database, redis)
    readings = sent([1] * 8, now_ms())
    for number, one in enumerate(readings):
        await (first, second)[number % 2].evaluate(one)
    ((_, value),) = (await memory_of(database)).items()
    assert len(_timeless(value)[3]) == 8  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "each",
    [
        node("held", condition="value > 3", seconds=SECONDS),
        node("absence", seconds=SECONDS),
        node("delay", "wait", "action", seconds=SECONDS),
        node("window", "window", "transform", seconds=SECONDS),
    ],
    ids=lambda each: each.name,
)
async def test_a_deadline_fires_once_though_every_worker_was_down(
    database: Database, redis: RedisClient, each: Node
) -> None:
    """It is kept by a worker that is gone when it comes; of two that start later one sends it; a repeated job of it and
    of its reading does nothing; Redis forgot everything."""
    state = await add_state(database)
    await save_chain(database, each, act(state=state))
    pane = int(SECONDS * 1000)
    (one,) = sent([9], now_ms() // pane * pane - 1000)  # the window has just begun
    await Worker(database, redis).evaluate(one)
    assert (await waiting(database), await changes_of(database, state)) == (1, [])
    await until(lambda: now_ms() > one.received_at_ms + 2 * SECONDS * 1000 + 100, 5)
    await redis.flushall()
    workers, stop = [Worker(database, redis) for _ in range(2)], asyncio.Event()
    firing = [asyncio.create_task(worker.deadlines.run(stop)) for worker in workers]
    await until(lambda: any(worker.outbox.sent for worker in workers), 10)
    stop.set()
    await asyncio.gather(*firing)
    rows = [row for worker in workers for row in worker.outbox.sent]
    assert len(rows) == 1
    for worker in workers:
        worker.outbox.sent = list(rows)
        await worker.resume()
        await worker.evaluate(one)
    ((at, cause),) = await changes_of(database, state)
    assert cause == one.id
    assert at > one.received_at_ms
    async with database.read() as connection:
        of, run = t.device_state_instance.c, t.chain_run.c
        recorded = select(run.at_ms).join(t.device_state_instance, of.chain_run_id == run.id)
        assert (await connection.execute(recorded)).all()  # why it changed can be asked


async def test_another_chain_runs_with_the_data_so_far(database: Database, redis: RedisClient) -> None:
    """runChain hands over the reading and the data, after the commit; a repeated job has no second effect."""
    state = await add_state(database)
    limit = node("hysteresis", "limit", sensorUUID=SENSOR, field="valueFahrenheit", **{"raise": 90, "clear": 50})
    called = await save_chain(database, limit, act(state=state), name="called")
    fahrenheit = node("convertToFahrenheit", "f", "transform")
    await save_chain(database, fahrenheit, node("runChain", "call", "action", ruleChainId=called), name="calls")
    worker = Worker(database, redis)
    (one,) = sent([40], now_ms())
    await worker.die(one)
    worker = Worker(database, redis)
    await worker.evaluate(one)
    assert await worker.resume() == 1
    await worker.evaluate(one)
    await worker.resume()
    assert await changes_of(database, state) == [(one.received_at_ms, one.id)]


async def test_memory_is_bounded(database: Database, redis: RedisClient) -> None:
    """What does not fit goes from the worker, not from the table."""
    await save_chain(database, node("throttle", seconds=1000), act(state=await add_state(database)))
    worker = Worker(database, redis)
    worker.memory._most_bytes = 2_000
    readings = [one._replace(telemetry_data_id=one.id) for one in sent([1] * 20, now_ms())]
    for _ in range(2):
        await worker.evaluate(*readings)
    assert len(worker.memory._cells) < 10
    async with database.read() as connection:
        assert (await connection.execute(select(func.count()).select_from(t.node_memory))).scalar_one() == 20


async def test_a_backlog_is_no_silence(database: Database, redis: RedisClient) -> None:
    """A deadline that comes while readings wait to be judged waits too, and each of them takes its place."""
    state = await add_state(database)
    await save_chain(database, node("absence", seconds=SECONDS), act(state=state))
    began = now_ms()
    first, second = sent([1, 1], began, 10)
    await Worker(database, redis).evaluate(first)
    await until(lambda: now_ms() > began + SECONDS * 1000 + 50, 5)
    worker, stop = Worker(database, redis), asyncio.Event()
    stored = history_pb2.SensorContext(sensor=sensor_pb2.Sensor(uuid=SENSOR, device_uuid="abc-123"))
    stored.latest["temperature"].CopyFrom(
        data_stream_pb2.Reading(id=second.id, telemetry_data_id=5, recieved_at=to_timestamp(second.received_at_ms))
    )
    worker.history.answer.sensors.append(stored)
    firing = asyncio.create_task(worker.deadlines.run(stop))
    await until(lambda: bool(worker.outbox.sent), 10)
    assert await worker.resume() == 1
    assert (await changes_of(database, state), await waiting(database)) == ([], 1)
    await worker.evaluate(second)
    await until(lambda: bool(worker.outbox.sent), 10)
    await worker.resume()
    assert await changes_of(database, state) == [(second.received_at_ms + int(SECONDS * 1000), second.id)]
    stop.set()
    await firing


async def test_context_is_fetched_once_for_a_job_that_asks(database: Database, redis: RedisClient) -> None:
    """Labels, attributes, states and the latest of other sensors are known to conditions; devices are kept until the
    registry changes; whoever names none of it asks nothing."""
    state = await add_state(database)
    worker = Worker(database, redis)
    plain = await save_chain(database, node("condition", condition="value > 100"), act(state=state), name="plain")
    await worker.evaluate(*sent([1, 2], now_ms()))
    assert worker.history.calls == 0
    asking = "device.labels.site == 'Graz' && value > device.attributes.limit && states.alert == 'normal'"
    await save_chain(database, node("condition", condition=asking), act(state=state), name=f"behind {plain}")
    worker = Worker(database, redis)
    device = device_pb2.Device(uuid="abc-123", labels={"site": "Graz"})
    device.attributes.update({"limit": 7})
    worker.history.answer.devices.append(device)
    await redis.flushall()
    for values in ([1, 2], [8, 9]):
        await worker.evaluate(*sent(values, now_ms()))
    assert worker.history.calls == 1
    ((_, cause),) = await changes_of(database, state)
    assert cause == 1
    worker.contexts.forget()
    await worker.evaluate(*sent([8], now_ms()))
    assert worker.history.calls == 2


async def test_derived_readings_leave_with_the_commit(database: Database, redis: RedisClient) -> None:
    """One outbox row for a job, each reading named by its chain, node and reading."""
    derived = node("saveReading", "f", "action", variableName="fahrenheit", value="value * 9 / 5 + 32")
    await save_chain(database, derived, node("delay", "later", "action", seconds=1000))
    worker = Worker(database, redis)
    at = now_ms()
    readings = sent([10, 20], at)
    await worker.die(*readings)
    worker = Worker(database, redis)
    for _ in range(2):
        await worker.evaluate(*readings)
    first, again = [data_stream_pb2.WriteReadingsRequest.FromString(row.payload).readings for row in worker.outbox.sent]
    assert [one.value for one in first] == [b"50.0", b"68.0"]
    assert [(one.organization_id, one.sensor_uuid, one.depth) for one in first] == [(1, SENSOR, 1)] * 2
    assert [one.message_id for one in first] == [one.message_id for one in again]


async def test_an_earlier_deadline_wakes_whoever_sleeps(database: Database, redis: RedisClient) -> None:
    """It is fired when it comes, not when the table is looked at again."""
    await save_chain(database, node("delay", "wait", "action", seconds=SECONDS), act(state=await add_state(database)))
    worker, stop = Worker(database, redis), asyncio.Event()
    firing = asyncio.create_task(worker.deadlines.run(stop))
    for one in sent([1, 2], now_ms()):
        began = now_ms()
        await worker.evaluate(one)
        await until(lambda: bool(worker.outbox.sent), 10)
        assert SECONDS * 1000 <= now_ms() - began < POLL_SECONDS * 1000
        worker.outbox.sent.clear()
    stop.set()
    await firing


async def test_what_a_job_knows_of_devices_outlives_a_change_of_the_registry(
    database: Database, redis: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one device is asked about, a hint says that the registry changed: what was kept of another is this job's
    still, and what was under way is not kept for the next one."""
    state = await add_state(database)
    await save_chain(database, node("condition", condition="device.labels.site == 'Graz'"), act(state=state))
    worker = Worker(database, redis)
    (known,) = sent([1], now_ms())
    other = known._replace(device_uuid="def-456", telemetry_data_id=6)
    worker.history.answer.devices.add(uuid="abc-123", labels={"site": "Graz"})
    await worker.evaluate(known)
    asked = []

    async def slowly(request: history_pb2.GetContextRequest) -> history_pb2.GetContextResponse:
        asked.append(list(request.devices))
        worker.contexts.forget()
        return history_pb2.GetContextResponse(
            devices=[device_pb2.Device(uuid=uuid, labels={"site": "Graz"}) for uuid in request.devices]
        )

    monkeypatch.setattr(worker.history, "GetContext", slowly)
    await worker.evaluate(known, other)
    (judged,) = (await worker.index.judges_of([SENSOR])).of[SENSOR]
    assert (judged.activity.failed, judged.activity.fired) == (0, 3)
    await worker.evaluate(other)
    assert asked == [["def-456"], ["def-456"]]
