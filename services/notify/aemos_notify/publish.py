"""Notifications that users announce themselves."""

from __future__ import annotations

import re
from uuid import uuid4

from aemos.v1 import notification_pb2 as pb
from aemos.v1.job_pb2 import Announcement
from aemos_core import telemetry
from aemos_core.announcements import announcement
from aemos_core.errors import invalid
from google.protobuf import json_format

RESERVED = frozenset(
    (
        *("device-state-change", "data-stream", "alarm", "device-connectivity", "rule-run"),
        # which a Socket.IO client takes for its own
        *("connect", "disconnect", "disconnecting", "error", "session-expired"),
    )
)
_TYPE = re.compile(r"[a-z0-9-]{1,64}")
_MOST_BYTES = 16 * 1024
_MOST_UUID = 64


def announcement_of(request: pb.PublishNotificationRequest, organization_id: int) -> Announcement:
    """What a user asks to announce, to everybody of the organization; INVALID names the field that is wrong."""
    if not _TYPE.fullmatch(request.type) or request.type in RESERVED:
        raise invalid("type", "must be 1 to 64 of a-z 0-9 -, and none of AEMOS' own")
    if len(request.uuid) > _MOST_UUID:
        raise invalid("uuid", f"must have at most {_MOST_UUID} characters")
    try:
        metadata = json_format.MessageToDict(request.metadata)
    except ValueError:
        raise invalid("metadata", "has a number that JSON has not") from None
    # Of the organization's own: nobody can spend the uuid of another one's notification.
    uuid = f"{organization_id}:{request.uuid or uuid4().hex}"
    made = announcement(request.type, organization_id, metadata, request.device_uuid, (), telemetry.current(), uuid)
    if len(made.notification_json.encode()) > _MOST_BYTES:
        raise invalid("metadata", f"must have at most {_MOST_BYTES} bytes as JSON")
    return made
