"""Rows and results as messages of the contract."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
from aemos.v1 import data_stream_pb2, device_pb2, identity_pb2, rejection_pb2, sensor_pb2, telemetry_data_pb2
from aemos_core.errors import AemosError, FieldError, invalid
from aemos_core.records import message
from aemos_core.times import now_ms, to_timestamp
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from aemos_ingest.labels import attributes_of, labels_of, stored_attributes
from aemos_ingest.registry_store import AnyRow
from aemos_ingest.repeats import Incoming

organization = partial(message, identity_pb2.Organization)
sensor = partial(message, sensor_pb2.Sensor)
variable = partial(message, telemetry_data_pb2.TelemetryData)


def device(row: AnyRow) -> device_pb2.Device:
    """A device."""
    attributes = Struct()
    attributes.update(attributes_of(row.attributes))
    return message(device_pb2.Device, row, labels=labels_of(row.labels), attributes=attributes)


def device_changes(request: device_pb2.UpdateDeviceRequest) -> dict[str, Any]:
    """The columns that an update gives; labels are for themselves, since it gives only what changes of them."""
    given: dict[str, Any] = {
        field: getattr(request, field) for field in ("name", "creates_variables") if request.HasField(field)
    }
    if request.HasField("attributes"):
        given["attributes"] = attributes(request.attributes)
    return given


def attributes(given: Struct) -> str:
    """Attributes of a request as they are stored; INVALID when there are too many or JSON does not have them."""
    try:
        return stored_attributes(json_format.MessageToDict(given))
    except ValueError:  # NaN or infinity, which only gRPC can bring
        raise invalid("attributes", "must be values that JSON has") from None


def token(row: AnyRow, secret: str = "") -> device_pb2.DeviceToken:
    """A token, with its secret only when it was made just now."""
    return message(device_pb2.DeviceToken, row, token=secret)


def device_identity(row: AnyRow | None) -> identity_pb2.DeviceIdentity:
    """The device behind a token; empty when the token is not valid."""
    if row is None:
        return identity_pb2.DeviceIdentity()
    return identity_pb2.DeviceIdentity(
        token_id=row.id,
        organization_id=row.organization_id,
        device_id=row.device_id,
        device_uuid=row.device_uuid,
        valid_for_ms=0 if row.expires_at_ms is None else max(row.expires_at_ms - now_ms(), 1),
    )


def time_ms(request: Message, field: str) -> int | None:
    """A time that a request gives; INVALID when no calendar has it, as only gRPC can bring it."""
    if not request.HasField(field):
        return None
    try:
        return int(getattr(request, field).ToMilliseconds())
    except ValueError:
        raise invalid(field.replace("_a", "A"), "must be in the years 1 to 9999") from None


def rejection(row: AnyRow) -> rejection_pb2.Rejection:
    """A refused message."""
    errors = [rejection_pb2.RejectionError(**error) for error in msgspec.json.decode(row.errors)]
    return message(rejection_pb2.Rejection, row, id=row.number, rejected_at=to_timestamp(row.at_ms), errors=errors)


def reading(row: Any, of: AnyRow) -> data_stream_pb2.Reading:
    """A stored reading of a variable."""
    return data_stream_pb2.Reading(
        id=row.id,
        value=row.value,
        variable_name=of.variable_name,
        telemetry_data_id=of.id,
        sensor_uuid=of.sensor_uuid,
        recieved_at=to_timestamp(row.received_at_ms),
    )


def write_result(one: Incoming) -> data_stream_pb2.WriteResult:
    """What became of one reading."""
    if one.error is not None:
        return data_stream_pb2.WriteResult(refusal=_refusal(one.error))
    if one.is_dropped:
        return data_stream_pb2.WriteResult()
    return data_stream_pb2.WriteResult(
        id=one.id,
        telemetry_data_id=one.variable.telemetry_data_id,
        sensor_uuid=one.variable.sensor_uuid,
        repeats_at_ms=one.repeats_at_ms,
    )


def _refusal(error: AemosError) -> data_stream_pb2.Refusal:
    mistake = error.errors[0] if error.errors else FieldError("", error.detail)
    return data_stream_pb2.Refusal(kind=error.kind.value, reason=error.reason, detail=mistake.message, loc=mistake.loc)
