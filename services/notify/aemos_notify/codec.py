"""Notifications in their forms: the channel's JSON, the log's entries, the contract's messages, Socket.IO's events."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from aemos.v1 import notification_pb2 as pb
from aemos.v1.job_pb2 import CommittedReading
from aemos_core import telemetry
from aemos_core.notification_log import Logged, logged, parse_log_id
from aemos_core.times import parse_rfc3339, rfc3339
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from aemos_notify.domain import Entry, Query

log = logging.getLogger("aemos.notify")

_LONGEST_TYPE, _LONGEST_UUID = 100, 64


class _Head(msgspec.Struct):
    type: str = ""
    deviceUuid: str = ""  # noqa: N815


_head_decoder = msgspec.json.Decoder(_Head)
_body_decoder = msgspec.json.Decoder(dict[str, Any])
_encode = msgspec.json.Encoder().encode


def entry_from_log(log_id: bytes, fields: Mapping[bytes, bytes]) -> Entry:
    """An entry of a Redis stream. One that is no notification is kept as an empty object: it must not stop the rest."""
    return entry_of(logged(log_id, fields))


def entry_of(found: Logged) -> Entry:
    """An entry as the ledger has it."""
    try:
        head = _head_decoder.decode(found.body)
    except msgspec.DecodeError:
        log.warning("entry %s of a notification log is no notification", found.id)
        return Entry(found.id, "", "", "{}")
    event = found.event or head.type
    return Entry(found.id, event[:_LONGEST_TYPE], head.deviceUuid[:_LONGEST_UUID], found.body, " ".join(found.rooms))


def query_from_pb(request: pb.ListNotificationsRequest) -> Query:
    """What is asked for; a page's token is the id of the last one before it."""
    after = (
        parse_log_id(request.page_token, "pageToken") if request.page_token else parse_log_id(request.after, "after")
    )
    return Query(after, request.device_uuid)


def page_to_pb(entries: Sequence[Entry], next_page_token: str) -> pb.ListNotificationsResponse:
    """A page of the ledger."""
    return pb.ListNotificationsResponse(
        notifications=[entry_to_pb(entry) for entry in entries], next_page_token=next_page_token
    )


def notification_of(entry: Entry) -> dict[str, Any]:
    """The notification as it was delivered."""
    return {**_body_decoder.decode(entry.body), "id": entry.id}


def entry_to_pb(entry: Entry) -> pb.Notification:
    """A notification."""
    body = _body_decoder.decode(entry.body)
    metadata = Struct()
    if isinstance(body.get("metadata"), dict):
        metadata.update(body["metadata"])
    timestamp = Timestamp()
    timestamp.FromMilliseconds(_moment(body.get("timestamp"), entry.log_id.ms))
    return pb.Notification(
        id=entry.id,
        type=entry.type,
        device_uuid=entry.device_uuid,
        metadata=metadata,
        timestamp=timestamp,
        trace_id=str(body.get("traceId", "")),
    )


def _moment(value: object, otherwise: int) -> int:
    try:
        return parse_rfc3339(str(value))
    except ValueError:
        return otherwise


def reading_to_json(reading: CommittedReading, now: int, merged: int = 0) -> str:
    """The payload of the event `data-stream`: `timestamp` is when it is sent, `recievedAt` when it was measured, and
    `merged` how many readings of the same variable it stands for beside itself."""
    payload = {
        "deviceUuid": reading.device_uuid,
        "deviceId": reading.device_id,
        "sensorUuid": reading.sensor_uuid,
        "variableName": reading.variable_name,
        "value": _value(reading),
        "dataStreamId": reading.id,
        "recievedAt": rfc3339(reading.received_at_ms),
        "merged": merged,
        "timestamp": rfc3339(now),
        "traceId": telemetry.trace_id_of(reading.trace_context),
    }
    return _encode(payload).decode()


def _value(reading: CommittedReading) -> float | bool | str:
    if reading.variable_type == "number" and reading.HasField("number"):
        return reading.number
    return reading.text == "true" if reading.variable_type == "boolean" else reading.text
