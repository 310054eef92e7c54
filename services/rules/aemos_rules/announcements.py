"""Changes of states and alarms as they are announced."""

from __future__ import annotations

from typing import Any

from aemos.v1 import job_pb2
from aemos_core.announcements import announcement
from aemos_core.names import alarms_room

DEVICE_STATE_CHANGE = "device-state-change"
ALARM = "alarm"


def state_change(state: Any, old_value: str, new_value: str, trace_context: bytes) -> job_pb2.Announcement:
    """The announcement of one change; `state` is its row."""
    metadata = {"stateName": state.name, "newValue": new_value, "oldValue": old_value}
    return announcement(DEVICE_STATE_CHANGE, state, metadata, trace_context)


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
    return announcement(ALARM, alarm, metadata, trace_context, rooms)
