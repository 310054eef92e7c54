"""Changes of states and alarms as they are announced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import uuid4

import msgspec
from aemos.v1 import job_pb2
from aemos_core.names import alarms_room, device_id_room, device_room
from aemos_core.outbox import Row
from aemos_core.outbox_senders import ANNOUNCE
from aemos_core.times import now_ms, rfc3339

DEVICE_STATE_CHANGE = "device-state-change"
ALARM = "alarm"


def state_change(state: Any, old_value: str, new_value: str, trace_context: bytes) -> job_pb2.Announcement:
    """The announcement of one change; `state` is its row."""
    metadata = {"stateName": state.name, "newValue": new_value, "oldValue": old_value}
    return _announcement(DEVICE_STATE_CHANGE, state, metadata, trace_context)


def alarm_changed(alarm: Any, change: str, trace_context: bytes) -> job_pb2.Announcement:
    """The announcement of what happened to an alarm; `alarm` is its row afterwards."""
    metadata = {
        "alarmId": alarm.id,
        "alarmType": alarm.type,
        "change": change,
        "severity": alarm.severity,
        "active": alarm.active,
        "acknowledged": alarm.acknowledged_at_ms is not None,
        "message": alarm.message,
    }
    rooms = [alarms_room(alarm.organization_id)]
    return _announcement(ALARM, alarm, metadata, trace_context, rooms)


def _announcement(
    event: str, row: Any, metadata: Mapping[str, Any], trace_context: bytes, rooms: Iterable[str] = ()
) -> job_pb2.Announcement:
    notification = {
        "type": event,
        "deviceUuid": row.device_uuid,
        "metadata": metadata,
        "timestamp": rfc3339(now_ms()),
    }
    return job_pb2.Announcement(
        uuid=uuid4().hex,
        organization_id=row.organization_id,
        event=event,
        rooms=[device_room(row.device_uuid), device_id_room(row.device_id), *rooms],
        notification_json=msgspec.json.encode(notification).decode(),
        trace_context=trace_context,
    )


def outbox_row(announcements: Iterable[job_pb2.Announcement]) -> Row:
    """The outbox row of one transaction's announcements."""
    batch = job_pb2.AnnouncementBatch(announcements=announcements)
    return Row(ANNOUNCE, 0, batch.SerializeToString(), len(batch.announcements))
