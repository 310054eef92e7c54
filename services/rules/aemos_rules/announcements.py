"""State changes as they are announced."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import msgspec
from aemos.v1 import job_pb2
from aemos_core.names import device_id_room, device_room
from aemos_core.outbox import Row
from aemos_core.outbox_senders import ANNOUNCE
from aemos_core.times import now_ms, rfc3339

DEVICE_STATE_CHANGE = "device-state-change"


def state_change(state: Any, old_value: str, new_value: str, trace_context: bytes) -> job_pb2.Announcement:
    """The announcement of one change; `state` is its row."""
    notification = {
        "type": DEVICE_STATE_CHANGE,
        "deviceUuid": state.device_uuid,
        "metadata": {"stateName": state.name, "newValue": new_value, "oldValue": old_value},
        "timestamp": rfc3339(now_ms()),
    }
    return job_pb2.Announcement(
        uuid=uuid4().hex,
        organization_id=state.organization_id,
        event=DEVICE_STATE_CHANGE,
        rooms=[device_room(state.device_uuid), device_id_room(state.device_id)],
        notification_json=msgspec.json.encode(notification).decode(),
        trace_context=trace_context,
    )


def outbox_row(announcements: Iterable[job_pb2.Announcement]) -> Row:
    """The outbox row of one transaction's announcements."""
    batch = job_pb2.AnnouncementBatch(announcements=announcements)
    return Row(ANNOUNCE, 0, batch.SerializeToString(), len(batch.announcements))
