"""What a producer announces, of a device or not, and the outbox row that it becomes in the producer's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import uuid4

import msgspec
from aemos.v1 import job_pb2

from aemos_core.names import device_id_room, device_room
from aemos_core.outbox import Row
from aemos_core.outbox_senders import ANNOUNCE
from aemos_core.telemetry import NO_CONTEXT
from aemos_core.times import now_ms, rfc3339


def announcement(
    event: str,
    organization_id: int,
    metadata: Mapping[str, Any],
    device_uuid: str = "",
    rooms: Iterable[str] = (),
    trace_context: bytes = NO_CONTEXT,
    uuid: str = "",
) -> job_pb2.Announcement:
    """A notification of now, for `rooms`, or for everybody of the organization; `uuid` is a new one by default."""
    notification = {"type": event, "deviceUuid": device_uuid, "metadata": metadata, "timestamp": rfc3339(now_ms())}
    return job_pb2.Announcement(
        uuid=uuid or uuid4().hex,
        organization_id=organization_id,
        event=event,
        rooms=rooms,
        notification_json=msgspec.json.encode(notification).decode(),
        trace_context=trace_context,
    )


def device_announcement(
    event: str, row: Any, metadata: Mapping[str, Any], trace_context: bytes, rooms: Iterable[str] = ()
) -> job_pb2.Announcement:
    """One for those who listen to a device, and to `rooms` besides; `row` has its ids and its uuid."""
    rooms = [device_room(row.device_uuid), device_id_room(row.device_id), *rooms]
    return announcement(event, row.organization_id, metadata, row.device_uuid, rooms, trace_context)


def outbox_row(announcements: Iterable[job_pb2.Announcement]) -> Row:
    """The outbox row of one transaction's announcements."""
    batch = job_pb2.AnnouncementBatch(announcements=announcements)
    return Row(ANNOUNCE, 0, batch.SerializeToString(), len(batch.announcements))
