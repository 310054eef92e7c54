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

NO_CONTEXT: Any = None


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


class World:
    """A worker and a service on one database."""

    def __init__(self, database: Database, redis: RedisClient) -> None:
        set_caller(Caller(1, 7, "operator", "token"))
        self.outbox = KeptOutbox(database)
        self._effects = Parts(database, redis, self.outbox).effects
        self.alarms = AlarmServicer(database, self.outbox)

    async def asserts(self, *steps: tuple[str, int], kind: str = "too-warm") -> None:
        """One job whose readings say these severities at these times."""
        await self._effects.apply(
            [
                AlarmAssertion(
                    kind, severity, f"at {at}", 11, Reading(at, 1, 5, "d-5", 3, "s", 9, "t", "number", 1.0, at, b"")
                )
                for severity, at in steps
            ]
        )

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
