"""Notifications that users announce themselves."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from uuid import uuid4

import msgspec
from aemos.v1 import device_pb2
from aemos.v1.job_pb2 import Announcement
from aemos_core import names, telemetry
from aemos_core.announce import Announcer
from aemos_core.errors import invalid, unavailable
from aemos_core.identity import caller
from aemos_core.times import now_ms, rfc3339
from redis.exceptions import RedisError

RESERVED = frozenset(
    (
        *("device-state-change", "data-stream", "alarm", "device-connectivity", "rule-run"),
        *(
            "connect",
            "disconnect",
            "disconnecting",
            "error",
            "session-expired",
        ),  # which a Socket.IO client takes for its own
    )
)
_TYPE = re.compile(r"[a-z0-9-]{1,64}")
_MOST_BYTES = 16 * 1024
_MOST_UUID = 64


class Publisher:
    """Announces inside the caller's organization."""

    def __init__(self, announcer: Announcer, get_device: Callable[..., Awaitable[device_pb2.Device]]) -> None:
        self._announcer = announcer
        self._get_device = get_device

    async def publish(self, uuid: str, device_uuid: str, kind: str, metadata: Mapping[str, Any]) -> None:
        """Logs and publishes it; the same uuid again does nothing. UNAVAILABLE when Redis does not answer."""
        if not _TYPE.fullmatch(kind) or kind in RESERVED:
            raise invalid("type", "must be 1 to 64 of a-z 0-9 -, and none of AEMOS' own")
        if len(uuid) > _MOST_UUID:
            raise invalid("uuid", f"must have at most {_MOST_UUID} characters")
        notification = {
            "type": kind,
            "deviceUuid": device_uuid,
            "metadata": metadata,
            "timestamp": rfc3339(now_ms()),
        }
        body = msgspec.json.encode(notification)
        if len(body) > _MOST_BYTES:
            raise invalid("metadata", f"must have at most {_MOST_BYTES} bytes as JSON")
        organization = caller().organization_id
        announcement = Announcement(
            # Of the organization's own: nobody can spend the uuid of another one's notification.
            uuid=f"{organization}:{uuid or uuid4().hex}",
            organization_id=organization,
            event=kind,
            rooms=await self._rooms(device_uuid),
            notification_json=body.decode(),
            trace_context=telemetry.current(),
        )
        try:
            await self._announcer.announce([announcement])
        except (RedisError, OSError) as error:
            raise unavailable("the notification log did not answer") from error

    async def _rooms(self, device_uuid: str) -> list[str]:
        if not device_uuid:
            return []
        device = await self._get_device(device_pb2.GetDeviceRequest(device=device_uuid))
        return [names.device_room(device.uuid), names.device_id_room(device.id)]
