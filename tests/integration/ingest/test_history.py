"""History on both databases: pages, aggregates against a model in Python, latest values."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from aemos.v1 import data_stream_pb2 as pb
from aemos.v1 import history_pb2
from aemos_core.database import open_database
from aemos_core.errors import AemosError, Kind
from aemos_core.names import LATEST_READINGS
from aemos_core.redis_link import open_redis
from aemos_ingest import tables
from aemos_ingest.history_service import History
from aemos_ingest.intervals import MOST
from aemos_ingest.latest import LatestReadings
from aemos_ingest.retention import DAY_MS
from sqlalchemy import event, update

from tests.support.history_world import Reading, World, asked, newest, row

pytestmark = pytest.mark.asyncio
HOUR_MS = 3_600_000
BEGIN = int(datetime(2026, 10, 20, tzinfo=ZoneInfo("Europe/Berlin")).timestamp()) * 1_000
END = BEGIN + 10 * DAY_MS
ALL = ("min", "max", "avg", "sum", "first", "last", "count")


def ten_days(variable_id: int = 1) -> list[Reading]:
    """Irregular, with ties, a gap of a day, and readings at midnight to the millisecond."""
    rng = random.Random(variable_id)
    times = [rng.randrange(BEGIN, END) for _ in range(1_000)] + [BEGIN + day * DAY_MS for day in range(10)]
    times += [times[0]] * 3 + [END - 1, END, BEGIN - 1]
    kept = [ms for ms in times if not BEGIN + 2 * DAY_MS <= ms < BEGIN + 3 * DAY_MS + HOUR_MS]
    return [
        row(variable_id * 100_000 + i, ms, variable_id, float(rng.randrange(-500, 500)) / 4)
        for i, ms in enumerate(kept)
    ]


def model(rows: Sequence[Reading], start: int, end: int) -> list[Any]:
    held = sorted((r["received_at_ms"], r["id"], r["number"], r["value"]) for r in rows)
    inside = [r for r in held if start <= r[0] < end]
    if not inside:
        return []
    numbers = [r[2] for r in inside]
    total = sum(numbers)
    mean = pytest.approx(total / len(numbers))
    return [len(inside), min(numbers), max(numbers), mean, total, inside[0][3], inside[-1][3]]


def values(found: pb.Aggregate) -> list[Any]:
    """What an interval says, in the model's order; nothing in a gap."""
    given = {field.name: value for field, value in found.ListFields()}
    return [given[name] for name in ("count", *ALL[:-1]) if name in given]


@pytest.mark.parametrize(
    ("interval", "zone", "count"),
    [("1h", "", 240), ("7m", "", 2058), ("day", "Europe/Berlin", 10), ("week", "Asia/Kathmandu", 2), ("", "", 1)],
)
async def test_aggregates_are_those_of_a_model(world: World, interval: str, zone: str, count: int) -> None:
    """Of every interval of both variables, gaps included, across the end of summer time on 2026-10-25."""
    rows = {1: ten_days(1), 2: ten_days(2)}
    await world.store(*rows[1], *rows[2], told=False)
    ask = asked(["s1", "s2"], ["temperature"], BEGIN, END, aggregate=ALL, interval=interval, timezone=zone)
    series = (await world.history.query(1, ask)).aggregates
    assert [one.telemetry_data_id for one in series] == [1, 2]
    for one in series:
        assert len(one.intervals) == count
        for found in one.intervals:
            start, end = getattr(found, "from").ToMilliseconds(), found.to.ToMilliseconds()
            expected = model(rows[one.telemetry_data_id], max(start, BEGIN), min(end, END))
            assert values(found) == expected


async def test_text_has_first_last_and_count(world: World) -> None:
    """Numbers of what is no number are absent; of a gap all is absent but the count."""
    await world.store(row(1, BEGIN, 4, "a"), row(2, BEGIN, 4, "b"), row(3, BEGIN + 5, 4, "c"))
    ask = asked(["s1"], ["note"], BEGIN, BEGIN + 2 * HOUR_MS, aggregate=("avg", "first", "last"), interval="1h")
    first, empty = (await world.history.query(1, ask)).aggregates[0].intervals
    assert (first.count, first.first, first.last, first.HasField("avg")) == (3, "a", "c", False)
    assert (empty.count, empty.HasField("first"), empty.HasField("last")) == (0, False, False)
    assert getattr(empty, "from") == first.to


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("sensors", [["s1"], ["s1", "s2"]])
async def test_pages_give_every_reading_once_in_order(world: World, sensors: list[str], newest_first: bool) -> None:
    """Merged over variables, with ties in time, whatever the page size."""
    rows = [*ten_days(1), *ten_days(2)]
    await world.store(*rows, told=False)
    variables = {int(uuid[1]) for uuid in sensors}
    keys = sorted(
        ((r["received_at_ms"], r["id"]) for r in rows if r["telemetry_data_id"] in variables
         and BEGIN <= r["received_at_ms"] < END),
        reverse=newest_first,
    )  # fmt: skip
    found: list[tuple[int, int]] = []
    page = pb.QueryReadingsResponse()
    while not found or page.next_page_token:
        order, token = "desc" if newest_first else "asc", page.next_page_token
        ask = asked(sensors, ["temperature"], BEGIN, END, page_size=97, page_token=token, order=order)
        page = await world.history.query(1, ask)
        found += [(r.recieved_at.ToMilliseconds(), r.id) for r in page.readings]
    assert found == keys


async def context(world: World, **fields: Any) -> history_pb2.GetContextResponse:
    """Of organization 1."""
    request = history_pb2.GetContextRequest(organization_id=1, **fields)
    return await world.history.GetContext(request, None)  # type: ignore[arg-type]


async def test_nothing_of_another_organization(world: World) -> None:
    """A foreign sensor is as one that does not exist, on every way."""
    await world.store(row(1, BEGIN, 3))
    for sensors in (["s3"], ["s1", "s3"], ["nowhere"]):
        for ask in (
            world.history.query(1, asked(sensors, [], 0, END)),
            world.history.query(1, asked(sensors, [], BEGIN, END, aggregate=["avg"], interval="1h")),
            newest(world.history, *sensors),
        ):
            with pytest.raises(AemosError) as refused:
                await ask
            assert refused.value.kind is Kind.NOT_FOUND
    found = await context(world, devices=["d3", "3"], sensor_uuids=["s3"])
    assert not found.devices
    assert not found.sensors


async def test_a_time_that_no_calendar_has_is_a_mistake(world: World) -> None:
    """Only gRPC can bring it; where it stands in the request."""
    for loc in ("from", "to"):
        for aggregate in ([], ["count"]):
            ask = pb.QueryReadingsRequest(sensor_uuid=["s1"], aggregate=aggregate)
            getattr(ask, loc).seconds = 10**18
            with pytest.raises(AemosError) as refused:
                await world.history.query(1, ask)
            assert (refused.value.kind, refused.value.errors[0].loc) == (Kind.INVALID, loc)


async def test_what_no_answer_can_hold_is_refused(world: World) -> None:
    """A caller would be told to come again. The limits of an answer are those of its messages, and of its variables."""
    names = {v: f"v{v:05}" for v in range(100, 100 + MOST)}
    common = {"sensor_id": 2, "type": "text", "unit": "", "organization_id": 1}
    await world.add(tables.telemetry_data, [{"id": v, "variable_name": name, **common} for v, name in names.items()])
    await world.store(*(row(v, BEGIN + v, v, "x" * 60_000) for v in range(100, 180)))
    whole = asked(["s2"], [], BEGIN, END, aggregate=["count"])
    named = asked(["s2"], list(names.values())[:80], BEGIN, END, aggregate=["first"])
    for answer in (world.newest("s2"), world.history.query(1, whole), world.history.query(1, named)):
        with pytest.raises(AemosError) as refused:
            await answer
        assert refused.value.kind is Kind.INVALID
    assert len((await world.history.query(1, asked(["s2"], list(names.values())[80:180], BEGIN, END))).readings) == 0


async def test_latest_moves_forward_only(world: World) -> None:
    """A late reading does not replace a newer one; a variable without readings is left out."""
    await world.store(row(1, BEGIN, 1, 1.0))
    await world.store(row(3, BEGIN + 9, 1, 3.0), row(2, BEGIN + 5, 1, 2.0))
    await world.store(row(4, BEGIN + 7, 1, 4.0), row(5, BEGIN, 4, "größer 🙂: 1:2:"))
    assert await world.newest("s1", "s2") == {("s1", "temperature"): "3.0", ("s1", "note"): "größer 🙂: 1:2:"}
    await world.store(row(6, BEGIN + 9, 1, 6.0), row(7, BEGIN, 2, 7.0))
    assert await world.newest("s1", "s2") == {
        ("s1", "temperature"): "6.0",
        ("s1", "note"): "größer 🙂: 1:2:",
        ("s2", "temperature"): "7.0",
    }


async def test_latest_is_right_after_a_flush(world: World) -> None:
    """What Redis lost is read from the database, and kept again."""
    await world.store(row(1, BEGIN, 1, 1.0), row(2, BEGIN, 2, 2.0))
    assert await world.newest("s1") == {("s1", "temperature"): "1.0"}
    await world.redis.flushall()
    assert await world.newest("s1", "s2") == {("s1", "temperature"): "1.0", ("s2", "temperature"): "2.0"}
    assert await world.redis.hlen(LATEST_READINGS) == 4  # with the generation, and the note that has none
    assert 0 < await world.redis.ttl(LATEST_READINGS) <= 3_600


async def test_a_late_reading_is_not_the_latest_after_a_flush(world: World) -> None:
    """Nor is it when it is the first that Redis hears of its variable: the newest is in the database (row 16)."""
    await world.store(row(1, BEGIN + 9, 1, 1.0), row(2, BEGIN + 9, 2, 2.0))
    await world.redis.flushall()
    await world.store(row(3, BEGIN, 1, 3.0), row(4, BEGIN + 10, 2, 4.0))
    assert await world.newest("s1", "s2") == {("s1", "temperature"): "1.0", ("s2", "temperature"): "4.0"}


async def test_latest_of_a_write_that_was_lost(world: World) -> None:
    """A process that starts, and one whose write failed, drop the hash before they use it."""
    await world.store(row(1, BEGIN, 1, 1.0))
    assert await world.newest("s1") == {("s1", "temperature"): "1.0"}
    await world.store(row(2, BEGIN + 1, 1, 2.0), told=False)
    world.latest.lost()
    assert await world.newest("s1") == {("s1", "temperature"): "2.0"}
    await world.store(row(3, BEGIN + 2, 1, 3.0), told=False)
    restarted = History(world.database, world.database, LatestReadings(world.database, world.redis))
    assert list((await newest(restarted, "s1")).values()) == ["3.0"]


async def test_aggregates_take_no_connection_from_anything_else(world: World) -> None:
    """While as many are under way as may be, the next one is refused; readings are read, and stored, as ever."""
    await world.store(row(1, BEGIN, 1, 1.0))
    url = world.database.engine.url.render_as_string(hide_password=False)
    async with open_database(url, 1, for_queries=True) as aggregating, aggregating.read():
        history = History(world.database, aggregating, world.latest)
        ask = asked(["s1"], ["temperature"], BEGIN, BEGIN + 1)
        assert len((await history.query(1, ask)).readings) == 1
        await world.store(row(2, BEGIN, 1, 2.0))
        ask.aggregate.append("avg")
        with pytest.raises(AemosError) as refused:
            await history.query(1, ask)
        assert refused.value.kind is Kind.UNAVAILABLE


async def test_latest_without_redis(world: World) -> None:
    """Comes from the database, and is right when Redis is there again."""
    async with open_redis("redis://127.0.0.1:1/0") as away:
        latest = LatestReadings(world.database, away)
        alone = World(world.database, away, latest, History(world.database, world.database, latest))
        await alone.store(row(1, BEGIN, 1, 1.0))
        assert await alone.newest("s1") == {("s1", "temperature"): "1.0"}


async def test_a_fill_that_was_overtaken_by_a_drop_adds_nothing(world: World) -> None:
    """Read before a newer commit, written after the drop that took the newer one: it must not stay."""
    await world.store(row(1, BEGIN, 1, 1.0), told=False)
    stored = world.latest._stored

    async def slow(variable_ids: Sequence[int]) -> Any:
        found = await stored(variable_ids)
        await world.store(row(2, BEGIN + 1, 1, 2.0))
        await world.redis.delete(LATEST_READINGS)
        return found

    world.latest._stored = slow  # type: ignore[method-assign]
    await world.newest("s1")
    world.latest._stored = stored  # type: ignore[method-assign]
    assert await world.newest("s1") == {("s1", "temperature"): "2.0"}


async def test_latest_is_never_behind_whatever_happens_to_redis(world: World) -> None:
    """Two processes write and read while the hash is flushed, dropped and doubted: in the end both know the newest."""
    rng = random.Random(7)
    other = LatestReadings(world.database, world.redis)
    both = [world, World(world.database, world.redis, other, History(world.database, world.database, other))]
    newest: dict[int, tuple[int, int]] = {}

    async def act(step: int) -> None:
        who, variable, ms = rng.choice(both), rng.choice((1, 2)), BEGIN + rng.randrange(300)
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        if rng.random() < 0.5:
            await who.store(row(step, ms, variable, float(step)))
            newest[variable] = max(newest.get(variable, (0, 0)), (ms, step))
        elif rng.random() < 0.7:
            await who.newest("s1", "s2")
        elif rng.random() < 0.5:
            await world.redis.flushdb()
        else:
            who.latest.lost()

    for begin in range(1, 300, 10):
        await asyncio.gather(*(act(step) for step in range(begin, begin + 10)))
    for who in both:
        found = await who.newest("s1", "s2")
        assert found == {(f"s{v}", "temperature"): str(float(step)) for v, (_, step) in newest.items()}


async def test_context_is_devices_sensors_and_latest(world: World) -> None:
    """By device id, uuid or sensor uuid; all by page when none is named."""
    await world.store(row(1, BEGIN, 1, 1.0), row(2, BEGIN, 2, 2.0))
    for devices, sensors in ((["1"], ["s2"]), (["d1", "2"], []), ([], ["s1", "s2"]), ([], [])):
        answer = await context(world, devices=devices, sensor_uuids=sensors)
        assert [device.uuid for device in answer.devices] == ["d1", "d2"]
        assert {one.sensor.uuid: {n: r.value for n, r in one.latest.items()} for one in answer.sensors} == {
            "s1": {"temperature": "1.0"},
            "s2": {"temperature": "2.0"},
        }
    first = await context(world, page_size=1)
    second = await context(world, page_size=1, page_token=first.next_page_token)
    assert [d.uuid for d in (*first.devices, *second.devices)] == ["d1", "d2"]
    assert second.next_page_token == ""


@pytest.mark.parametrize(("devices", "sensors"), [(["d9"], []), (["9"], ["s1"]), ([], ["s1", "s2"])])
async def test_context_looks_at_what_is_named_only(world: World, devices: list[str], sensors: list[str]) -> None:
    """Not at every device of the organization, of which it may have a hundred thousand."""
    common = {"created_at_ms": 0, "name": "x", "organization_id": 1, "creates_variables": True}
    await world.add(tables.device, [{"id": n, "uuid": f"d{n}", **common} for n in range(9, 3_009)])
    statements: list[tuple[str, Any]] = []
    engine, is_sqlite = world.database.engine, world.database.is_sqlite
    listener = (engine.sync_engine, "before_cursor_execute", lambda *a: statements.append((a[2], a[3])))
    event.listen(*listener)
    await context(world, devices=devices, sensor_uuids=sensors)
    event.remove(*listener)
    async with engine.connect() as connection:
        if not is_sqlite:
            await connection.exec_driver_sql("ANALYZE TABLE device, sensor")
        for statement, parameters in statements[:2]:
            explain = "EXPLAIN QUERY PLAN " if is_sqlite else "EXPLAIN "
            for step in await connection.exec_driver_sql(explain + statement, parameters):
                assert ("SCAN device" not in step.detail) if is_sqlite else int(step.rows or 0) < 100, step


async def test_context_of_a_label(world: World) -> None:
    """Only the devices that have it, with their attributes."""
    async with world.database.write() as connection:
        changed = {"labels": '{"site":"north"}', "attributes": '{"limit":5}'}
        await connection.execute(update(tables.device).where(tables.device.c.uuid == "d2").values(**changed))
    answer = await context(world, label="site=north")
    assert [(device.uuid, device.labels["site"], device.attributes["limit"]) for device in answer.devices] == [
        ("d2", "north", 5.0)
    ]
    assert [one.sensor.uuid for one in answer.sensors] == ["s2"]
