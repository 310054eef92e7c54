"""AlarmService of the contract: what users do with the alarms of their organization."""

from __future__ import annotations

from aemos.v1 import alarm_pb2 as pb
from aemos.v1 import alarm_pb2_grpc
from aemos_core import telemetry
from aemos_core.announcements import outbox_row
from aemos_core.database import Database
from aemos_core.errors import invalid
from aemos_core.identity import caller
from aemos_core.outbox import OutboxRows
from aemos_core.paging import page_of
from aemos_core.records import AnyRow, listed, message, own
from aemos_core.rpc import Context
from sqlalchemy import ColumnElement, select

from aemos_rules import alarm_store
from aemos_rules import tables as t
from aemos_rules.alarms import SEVERITIES, What
from aemos_rules.announcements import alarm_changed


class AlarmServicer(alarm_pb2_grpc.AlarmServiceServicer):
    """Alarms."""

    def __init__(self, database: Database, outbox: OutboxRows) -> None:
        self._database = database
        self._outbox = outbox

    async def ListAlarms(self, request: pb.ListAlarmsRequest, context: Context) -> pb.ListAlarmsResponse:
        if request.severity not in ("", *SEVERITIES):
            raise invalid("severity", f"must be one of {', '.join(SEVERITIES)}")
        query = select(t.alarm).where(t.alarm.c.organization_id == caller().organization_id, *_wanted(request))
        async with self._database.read() as connection:
            rows, token = await listed(connection, query, t.alarm.c.id, page_of(request), newest_first=True)
        return pb.ListAlarmsResponse(alarms=map(_alarm, rows), next_page_token=token)

    async def GetAlarm(self, request: pb.GetAlarmRequest, context: Context) -> pb.Alarm:
        async with self._database.read() as connection:
            return _alarm(await own(connection, t.alarm, request.id))

    async def AcknowledgeAlarm(self, request: pb.AcknowledgeAlarmRequest, context: Context) -> pb.Alarm:
        return await self._by_hand(request.id, What.ACKNOWLEDGED)

    async def ClearAlarm(self, request: pb.ClearAlarmRequest, context: Context) -> pb.Alarm:
        return await self._by_hand(request.id, What.CLEARED)

    async def ListAlarmEvents(self, request: pb.ListAlarmEventsRequest, context: Context) -> pb.ListAlarmEventsResponse:
        query = select(t.alarm_event).where(t.alarm_event.c.alarm_id == request.alarm_id)
        async with self._database.read() as connection:
            await own(connection, t.alarm, request.alarm_id)
            rows, token = await listed(connection, query, t.alarm_event.c.id, page_of(request))
        events = [message(pb.AlarmEvent, row) for row in rows]
        return pb.ListAlarmEventsResponse(alarm_events=events, next_page_token=token)

    async def _by_hand(self, alarm_id: int, what: What) -> pb.Alarm:
        async with self._database.write() as connection:
            row = await own(connection, t.alarm, alarm_id, lock=True)
            changed = await alarm_store.change_by_hand(connection, row, what)
            if changed is None:
                return _alarm(row)
            rows = await self._outbox.add(connection, [outbox_row([alarm_changed(changed, what, telemetry.current())])])
        self._outbox.committed(rows)
        return _alarm(changed)


def _alarm(row: AnyRow) -> pb.Alarm:
    return message(pb.Alarm, row, acknowledged=row.acknowledged_at_ms is not None)


def _wanted(request: pb.ListAlarmsRequest) -> list[ColumnElement[bool]]:
    """What is not given stands for any."""
    equal = [name for name in ("device_uuid", "severity", "type") if getattr(request, name)]
    conditions = [t.alarm.c[name] == getattr(request, name) for name in equal]
    if request.HasField("active"):
        conditions.append(t.alarm.c.active == request.active)
    if request.HasField("acknowledged"):
        is_open = t.alarm.c.acknowledged_at_ms.is_(None)
        conditions.append(~is_open if request.acknowledged else is_open)
    return conditions
