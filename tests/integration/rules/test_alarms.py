"""Alarms on both databases: raised, changed and cleared by chains, acknowledged and cleared by people."""

from __future__ import annotations

from typing import Any

import pytest
from aemos.v1 import alarm_pb2 as pb
from aemos.v1.job_pb2 import AnnouncementBatch
from aemos_core.database import Database
from aemos_core.errors import AemosError, Kind
from aemos_core.identity import Caller, set_caller
from aemos_core.outbox import Outbox, Row
from aemos_core.redis_link import RedisClient
from aemos_rules import tables
from aemos_rules.alarm_api import AlarmServicer
from aemos_rules.alarms import CLEARED, AlarmAssertion
from aemos_rules.appliers import Parts
from aemos_rules.domain import Reading
from aemos_rules.jobs import MOST_OF_DEVICE
from sqlalchemy import event, func, select

from tests.support.play import node, reading
from tests.support.rule_worker import Worker, save_chain

NO_CONTEXT: Any = None
MANY = 1_000


class KeptOutbox(Outbox):
    """Rows are written and kept."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, tables.outbox)
        self.rows: list[Row] = []

    def committed(self, rows: Any) -> None:
        self.rows += rows

    @property
    def told(self) -> list[str]:
        """What was announced: the changes in their order."""
        batches = (AnnouncementBatch.FromString(row.payload).announcements for row in self.rows)
        texts = [announcement.notification_json for batch in batches for announcement in batch]
        return [text.split('"change":"')[1].split('"')[0] for text in texts]


def assertion(severity: str, at: int, device: int = 5, kind: str = "too-warm") -> AlarmAssertion:
    reading = Reading(at, 1, device, f"d-{device}", 3, "s", 9, "t", "number", 1.0, at, b"")
    return AlarmAssertion(kind, severity, f"at {at}", 11, reading)


class World:
    """A worker and a service on one database."""

    def __init__(self, database: Database, redis: RedisClient) -> None:
        set_caller(Caller(1, 7, "operator", "token"))
        self.outbox = KeptOutbox(database)
        self._effects = Parts(database, redis, self.outbox).effects
        self.alarms = AlarmServicer(database, self.outbox)

    async def asserts(self, *steps: tuple[str, int], kind: str = "too-warm") -> None:
        """One job whose readings say these severities at these times."""
        await self._effects.apply([assertion(severity, at, kind=kind) for severity, at in steps])

    async def assert_all(self, severity: str, at: int) -> None:
        """One job in which many devices say the same."""
        await self._effects.apply([assertion(severity, at, device) for device in range(MANY)])

    async def found(self, **wanted: Any) -> list[pb.Alarm]:
        return list((await self.alarms.ListAlarms(pb.ListAlarmsRequest(**wanted), NO_CONTEXT)).alarms)

    async def listed(self, **wanted: Any) -> list[tuple[str, str, bool]]:
        return [(alarm.type, alarm.severity, alarm.active) for alarm in await self.found(**wanted)]


@pytest.fixture
def world(database: Database, redis: RedisClient) -> World:
    return World(database, redis)


async def test_one_is_active_for_a_device_and_type(world: World) -> None:
    """Raised once, changed in severity, cleared, and raised anew as another one; each told once."""
    await world.asserts(("minor", 1), ("minor", 2), ("critical", 3))
    await world.asserts(("critical", 3), ("critical", 4))
    await world.asserts(("info", 4), kind="door-open")
    assert await world.listed(active=True) == [("door-open", "info", True), ("too-warm", "critical", True)]
    await world.asserts((CLEARED, 5), ("major", 6))
    assert await world.listed(type="too-warm") == [("too-warm", "major", True), ("too-warm", "critical", False)]
    assert world.outbox.told == ["raised", "severity", "raised", "cleared", "raised"]


async def test_a_thousand_at_once_take_no_more_statements_than_one(world: World, database: Database) -> None:
    """A power failure raises an alarm of every device, in a transaction that has four seconds."""
    statements: list[str] = []
    listener = (database.engine.sync_engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    event.listen(*listener)
    counts = []
    for at, severity in enumerate(("major", "critical", CLEARED, "minor"), start=1):
        statements.clear()
        await world.assert_all(severity, at)
        counts.append(len(statements))
    event.remove(*listener)
    assert max(counts) < 15
    assert world.outbox.told[::MANY] == ["raised", "severity", "cleared", "raised"]
    assert len(world.outbox.told) == 4 * MANY
    async with database.read() as connection:
        _a, _e = tables.alarm.c, tables.alarm_event.c
        by_state = select(_a.severity, _a.active, _a.latest, func.count()).group_by(_a.severity, _a.active, _a.latest)
        found = {tuple(row) for row in (await connection.execute(by_state)).all()}
        by_severity = select(_e.severity, func.count()).group_by(_e.severity)
        events = {tuple(row) for row in (await connection.execute(by_severity)).all()}
    assert found == {("critical", False, None, MANY), ("minor", True, 1, MANY)}
    assert events == {("major", MANY), ("critical", 2 * MANY), ("minor", MANY)}


async def test_one_that_flaps_is_stored_in_time(database: Database, redis: RedisClient) -> None:
    """A job in which one device changes its alarm with each reading commits in parts: each change takes statements."""
    severity: dict[str, Any] = {"severity": "major"}
    for condition, kind, config in (("value > 25", "raiseAlarm", severity), ("value <= 25", "clearAlarm", {})):
        action = node(kind, "act", "action", alarmType="too-warm", **config)
        await save_chain(database, node("condition", condition=condition), action)
    worker = Worker(database, redis)
    await worker.evaluate(*(reading((30, 20)[n % 2], n) for n in range(MANY // 2)))
    told = [len(AnnouncementBatch.FromString(row.payload).announcements) for row in worker.outbox.sent]
    assert sum(told) == MANY // 2
    assert max(told) == MOST_OF_DEVICE // 2  # two chains run for each


async def test_late_readings_neither_raise_nor_clear(world: World) -> None:
    """Also when all that a newer reading said was that nothing is wrong."""
    await world.asserts((CLEARED, 10))
    await world.asserts(("critical", 9))
    assert await world.listed() == []
    await world.asserts(("critical", 11))
    await world.asserts((CLEARED, 10))
    assert await world.listed() == [("too-warm", "critical", True)]


async def test_people_acknowledge_and_clear(world: World) -> None:
    """Each once; what a reading from before says later raises nothing."""
    await world.asserts(("critical", 1))
    (alarm,) = await world.found()
    for _ in range(2):
        seen = await world.alarms.AcknowledgeAlarm(pb.AcknowledgeAlarmRequest(id=alarm.id), NO_CONTEXT)
        assert (seen.acknowledged, seen.HasField("acknowledged_at")) == (True, True)
        assert not (await world.alarms.ClearAlarm(pb.ClearAlarmRequest(id=alarm.id), NO_CONTEXT)).active
    assert await world.listed(acknowledged=False) == []
    assert len(await world.found(acknowledged=True)) == 1
    await world.asserts(("critical", 2))
    assert await world.listed(active=True) == []
    events = (await world.alarms.ListAlarmEvents(pb.ListAlarmEventsRequest(alarm_id=alarm.id), NO_CONTEXT)).alarm_events
    assert [(e.type, e.user_id, e.data_stream_id) for e in events] == [
        ("raised", 0, 1),
        ("acknowledged", 7, 0),
        ("cleared", 7, 0),
    ]
    assert world.outbox.told == ["raised", "acknowledged", "cleared"]


async def test_alarms_of_others_do_not_exist(world: World) -> None:
    """Neither listed nor found nor changed."""
    await world.asserts(("critical", 1))
    (alarm,) = await world.found()
    set_caller(Caller(2, 8, "admin", "token"))
    assert await world.listed() == []
    for refused in (
        world.alarms.GetAlarm(pb.GetAlarmRequest(id=alarm.id), NO_CONTEXT),
        world.alarms.AcknowledgeAlarm(pb.AcknowledgeAlarmRequest(id=alarm.id), NO_CONTEXT),
        world.alarms.ClearAlarm(pb.ClearAlarmRequest(id=alarm.id), NO_CONTEXT),
        world.alarms.ListAlarmEvents(pb.ListAlarmEventsRequest(alarm_id=alarm.id), NO_CONTEXT),
    ):
        with pytest.raises(AemosError) as error:
            await refused
        assert error.value.kind is Kind.NOT_FOUND
