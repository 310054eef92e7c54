"""Notifications in their forms: the log's entries, the ledger's rows, the contract's messages, Socket.IO's events; and
subscriptions and deliveries as the contract has them."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from aemos.v1 import notification_pb2 as pb
from aemos.v1 import subscription_pb2
from aemos.v1.job_pb2 import CommittedReading, ReadingSource
from aemos_core import telemetry
from aemos_core.notification_log import Logged, LogId, parse_log_id
from aemos_core.records import AnyRow, message
from aemos_core.times import parse_rfc3339, rfc3339
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from aemos_notify.subscriptions import Status

log = logging.getLogger("aemos.notify")

_LONGEST_TYPE, _LONGEST_UUID = 100, 64
_body_decoder = msgspec.json.Decoder(dict[str, Any])
_encode = msgspec.json.Encoder().encode


def notification_of(entry: Logged) -> dict[str, Any]:
    """The notification as it was delivered. Of an entry that is none there is only `id`: it must not stop the rest."""
    try:
        body = _body_decoder.decode(entry.body)
    except msgspec.DecodeError:
        log.warning("entry %s of a notification log is no notification", entry.id)
        body = {}
    return {**body, "id": str(entry.id)}


def entry_to_row(entry: Logged) -> dict[str, object]:
    """An entry as the ledger has it: what is no notification is kept as an empty object."""
    found = notification_of(entry)
    return {
        "ms": entry.id.ms,
        "seq": entry.id.seq,
        "type": _type(entry, found),
        "device_uuid": _device_uuid(found),
        "body": entry.body if len(found) > 1 else "{}",
        "rooms": " ".join(entry.rooms),
    }


def after_from_pb(request: pb.ListNotificationsRequest) -> LogId:
    """From where to list; a page's token is the id of the last one before it."""
    if request.page_token:
        return parse_log_id(request.page_token, "pageToken")
    return parse_log_id(request.after, "after")


def entry_to_pb(entry: Logged) -> pb.Notification:
    """A notification."""
    found = notification_of(entry)
    metadata = Struct()
    if isinstance(found.get("metadata"), dict):
        metadata.update(found["metadata"])
    timestamp = Timestamp()
    timestamp.FromMilliseconds(_moment(found.get("timestamp"), entry.id.ms))
    return pb.Notification(
        id=found["id"],
        type=_type(entry, found),
        device_uuid=_device_uuid(found),
        metadata=metadata,
        timestamp=timestamp,
        trace_id=str(found.get("traceId", "")),
    )


def _type(entry: Logged, found: dict[str, Any]) -> str:
    return (entry.event or str(found.get("type", "")))[:_LONGEST_TYPE]


def _device_uuid(found: dict[str, Any]) -> str:
    return str(found.get("deviceUuid", ""))[:_LONGEST_UUID]


def _moment(value: object, otherwise: int) -> int:
    try:
        return parse_rfc3339(str(value))
    except ValueError:
        return otherwise


def subscription_of(row: AnyRow, *, with_secret: bool = False) -> subscription_pb2.Subscription:
    """A row as the contract has it; its secret only where it is made."""
    wanted = json_format.Parse(row.filter, subscription_pb2.NotificationFilter())
    return message(subscription_pb2.Subscription, row, filter=wanted, secret=row.secret if with_secret else "")


def delivery_of(row: AnyRow) -> subscription_pb2.Delivery:
    """A row as the contract has it."""
    over = "over the hourly limit" + (f", with {row.repeats} more of this hour" if row.repeats else "")
    answer = over if row.status == Status.SUPPRESSED else row.answer
    return message(subscription_pb2.Delivery, row, notification_id=str(LogId(row.ms, row.seq)), answer=answer)


def reading_to_json(of: ReadingSource, reading: CommittedReading, now: int, merged: int = 0) -> str:
    """The payload of the event `data-stream`: `timestamp` is when it is sent, `recievedAt` when it was measured, and
    `merged` how many readings of the same variable it stands for beside itself."""
    payload = {
        "deviceUuid": of.device_uuid,
        "deviceId": of.device_id,
        "sensorUuid": of.sensor_uuid,
        "variableName": of.variable_name,
        "value": _value(of.variable_type, reading),
        "dataStreamId": reading.id,
        "recievedAt": rfc3339(reading.received_at_ms),
        "merged": merged,
        "timestamp": rfc3339(now),
        "traceId": telemetry.trace_id_of(reading.trace_context),
    }
    return _encode(payload).decode()


def _value(variable_type: str, reading: CommittedReading) -> float | bool | str:
    if variable_type == "number" and reading.HasField("number"):
        return reading.number
    return reading.text == "true" if variable_type == "boolean" else reading.text
