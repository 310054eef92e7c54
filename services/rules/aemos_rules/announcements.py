"""Changes of states and alarms as they are announced."""

from __future__ import annotations

from typing import Any
from uuid import NAMESPACE_OID, uuid5

from aemos.v1 import job_pb2
from aemos_core.announcements import announcement, device_announcement
from aemos_core.names import alarms_room, rule_chain_room
from aemos_core.times import now_ms, rfc3339

from aemos_rules.domain import Notice, RuleChain

DEVICE_STATE_CHANGE = "device-state-change"
ALARM = "alarm"
RULE_RUN = "rule-run"
MESSAGE = "message"
LOOPS_TOLD_EACH_MS = 60 * 60 * 1000


def state_change(state: Any, old_value: str, new_value: str, trace_context: bytes) -> job_pb2.Announcement:
    """The announcement of one change; `state` is its row."""
    metadata = {"stateName": state.name, "newValue": new_value, "oldValue": old_value}
    return device_announcement(DEVICE_STATE_CHANGE, state, metadata, trace_context)


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
    return device_announcement(ALARM, alarm, metadata, trace_context, rooms)


def chain_suspended(chain: RuleChain, error: str) -> job_pb2.Announcement:
    """The announcement that a chain only fails, and runs no more until it is saved again."""
    return _chain_failed(chain, "suspended", error)


def chain_looped(chain: RuleChain, error: str) -> job_pb2.Announcement:
    """The announcement that a chain was cut in a loop; those of one hour have one uuid, so the log takes the first."""
    hour = now_ms() // LOOPS_TOLD_EACH_MS
    return _chain_failed(chain, "loop", error, uuid5(NAMESPACE_OID, f"loop:{chain.id}:{hour}").hex)


def _chain_failed(chain: RuleChain, change: str, error: str, uuid: str = "") -> job_pb2.Announcement:
    metadata = {"change": change, "ruleChainId": chain.id, "name": chain.name, "error": error}
    return announcement(RULE_RUN, chain.organization_id, metadata, rooms=[rule_chain_room(chain.id)], uuid=uuid)


def message_of(notice: Notice) -> job_pb2.Announcement:
    """The announcement of what a chain says; its uuid is made of its key, so the log takes it once."""
    metadata = {"message": notice.message, "dataStreamId": notice.reading.id, "at": rfc3339(notice.at_ms)}
    announced = device_announcement(MESSAGE, notice.reading, metadata, notice.reading.trace_context)
    announced.uuid = uuid5(NAMESPACE_OID, notice.key).hex
    return announced
