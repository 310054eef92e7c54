"""Readings as devices send them: one decoder for every protocol and shape. Pure.

Shapes: one reading `{"value", "variableName", ...}`; several variables at once, `{"temperature": 21.5, "open": true}`
or `{"ts": <ms>, "values": {...}}`; an array of up to 1,000 of any of these. Of a repeated key the last one counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, starmap
from typing import Annotated, Any, NoReturn, TypeAlias

import msgspec
from aemos.v1 import data_stream_pb2
from aemos_core.errors import AemosError, FieldError, Kind, invalid, malformed
from aemos_core.times import now_ms, parse_rfc3339, rfc3339

MAX_READING_BYTES = 64 * 1024
MAX_BATCH_BYTES = 1024 * 1024
MOST_READINGS = 1_000
MAX_DEPTH = 64
EARLIEST_MS = parse_rfc3339("2000-01-01T00:00:00Z")
MOST_AHEAD_MS = 5 * 60 * 1000
_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_FIELD = re.compile(r"field `([^`]*)`")


Reading: TypeAlias = data_stream_pb2.NewReading
"""A reading that is well formed; only ingest knows whether its variable takes the value."""


Stored: TypeAlias = tuple[Reading, data_stream_pb2.WriteResult]
"""A reading that is durable."""


def _answer(reading: Reading, stored: data_stream_pb2.WriteResult) -> bytes:
    """The JSON of a reading that is durable; its time is that of the one it repeats, if it does."""
    return b'{"id":%d,"value":%b,"variableName":%b,"telemetryDataId":%d,"sensorUuid":%b,"recievedAt":"%b"}' % (
        stored.id,
        reading.value,
        msgspec.json.encode(reading.variable_name),
        stored.telemetry_data_id,
        msgspec.json.encode(stored.sensor_uuid),
        rfc3339(stored.repeats_at_ms or reading.received_at_ms).encode(),
    )


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of what one request brought: `stored` in its order, and in a partial batch what was `refused`."""

    stored: Sequence[Stored]
    is_list: bool = False
    refused: Sequence[FieldError] = ()

    def answer(self) -> bytes:
        """The JSON of a 201 and of a 2.01."""
        if not self.is_list:
            return b'{"data":%b}' % _answer(*self.stored[0])
        data = b'{"data":[%b]' % b",".join(starmap(_answer, self.stored))
        if not self.refused:
            return data + b"}"
        return data + b',"errors":%b}' % msgspec.json.encode(self.refused)


@dataclass(frozen=True, slots=True)
class Sent:
    """What one request brought. `refused` are mistakes of a partial batch, `places` where each reading stood in it."""

    readings: Sequence[Reading]
    is_list: bool = False
    refused: Sequence[FieldError] = ()
    places: Sequence[str] = ()


_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_SensorUuid = Annotated[str, msgspec.Meta(max_length=64)]
"""Short, for each of several variables carries it."""
_MessageId = Annotated[str, msgspec.Meta(max_length=128, pattern=r"^(\S(.*\S)?)?\Z")]
"""No space at its ends: MariaDB takes "a" and "a " for the same."""


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    variableName: _Name  # noqa: N815  the product's own spelling
    value: msgspec.Raw
    recievedAt: str | None = None  # noqa: N815
    receivedAt: str | None = None  # noqa: N815
    sensorUuid: _SensorUuid = ""  # noqa: N815
    messageId: _MessageId = ""  # noqa: N815


class _Values(msgspec.Struct, forbid_unknown_fields=True):
    values: dict[_Name, msgspec.Raw]
    ts: int | None = None
    sensorUuid: _SensorUuid = ""  # noqa: N815


_one = msgspec.json.Decoder(_Body)
_many = msgspec.json.Decoder(list[_Body])
_values = msgspec.json.Decoder(_Values)
_object = msgspec.json.Decoder(dict[_Name, msgspec.Raw])
_array = msgspec.json.Decoder(list[msgspec.Raw])
_OF_ONE = {"variableName", "value"}
_NO_VARIABLES = {*_Body.__struct_fields__, "ts"}


def decode(payload: bytes, *, partial: bool = False) -> Sent:
    """The readings of a payload. MALFORMED when the bytes cannot be parsed, INVALID naming each field otherwise.

    In a list, a field's place begins with its reading's index. `partial`: mistakes are returned instead of raised.
    """
    _check_size(payload)
    now = now_ms()
    try:
        check_text(payload)
        if payload.lstrip()[:1] == b"[":
            return _decode_array(payload, now, partial)
        return _decode_object(payload, now)
    except UnicodeDecodeError:
        raise malformed("the body is not UTF-8") from None
    except (msgspec.DecodeError, RecursionError) as error:
        detail = "nested too deep" if isinstance(error, RecursionError) else "the body is not JSON"
        raise malformed(detail) from None


def check_text(payload: bytes) -> None:
    """UnicodeDecodeError unless it is UTF-8; MALFORMED when a JSON string in it contains NUL."""
    if not payload.isascii():
        payload.decode()
    if b"\\u0000" in payload and _ESCAPED_NUL.search(payload):
        raise malformed("the character NUL is not text")


def check_depth(value: Any) -> None:
    """MALFORMED when JSON values are nested deeper than `MAX_DEPTH`."""
    depth, level = 0, [value]
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise malformed(f"nested more than {MAX_DEPTH} levels deep")
        children = chain.from_iterable(item.values() if isinstance(item, dict) else item for item in level)
        level = [child for child in children if isinstance(child, (list, dict))]


def _check_size(payload: bytes) -> None:
    if len(payload) <= MAX_READING_BYTES:
        return
    if payload.lstrip()[:1] != b"[":
        raise AemosError(Kind.TOO_LARGE, f"a reading has at most {MAX_READING_BYTES} bytes")
    if len(payload) > MAX_BATCH_BYTES:
        raise AemosError(Kind.TOO_LARGE, f"a batch has at most {MAX_BATCH_BYTES} bytes")


def _decode_object(payload: bytes, now: int) -> Sent:
    try:
        return Sent((_reading(_one.decode(payload), now),))
    except msgspec.ValidationError as error:
        readings = _several(payload, now, str(error))
        return Sent(readings, is_list=True, places=[reading.variable_name for reading in readings])


def _several(payload: bytes, now: int, otherwise: str) -> list[Reading]:
    """Several variables at once; what is none of its two shapes was meant as a single one, and is wrong as that."""
    try:
        fields = _object.decode(payload)
    except msgspec.ValidationError:
        _refuse(otherwise)
    if not fields or _OF_ONE & fields.keys():
        _refuse(otherwise)
    if bytes(fields.get("values", b""))[:1] == b"{":
        body = _values_of(payload)
    elif misplaced := _NO_VARIABLES & fields.keys():
        raise invalid(min(misplaced), 'goes with "values", or with "variableName" and "value"')
    else:
        body = _Values(fields)
    if not 0 < len(body.values) <= MOST_READINGS:
        raise invalid("values", f"must be 1 to {MOST_READINGS}")
    at, arrived = (now, True) if body.ts is None else (_checked_time("ts", body.ts, now), False)
    return [
        Reading(
            variable_name=name,
            value=_value(raw, name),
            received_at_ms=at,
            sensor_uuid=body.sensorUuid,
            at_arrival=arrived,
        )
        for name, raw in body.values.items()
    ]


def _values_of(payload: bytes) -> _Values:
    try:
        return _values.decode(payload)
    except msgspec.ValidationError as error:
        _refuse(str(error))


def _decode_array(payload: bytes, now: int, partial: bool) -> Sent:
    with suppress(msgspec.ValidationError, AemosError):
        bodies = _many.decode(payload)
        _check_count(len(bodies))
        return Sent([_reading(body, now) for body in bodies], is_list=True)
    # One by one, since some are wrong, or of another shape than the plain one.
    elements = _array.decode(payload)
    _check_count(len(elements))
    readings: list[Reading] = []
    places: list[str] = []
    errors: list[FieldError] = []
    for index, element in enumerate(elements):
        try:
            found = _decode_object(bytes(element), now)
        except AemosError as error:
            errors += _located(str(index), error)
            continue
        readings += found.readings
        places += [f"{index}.{place}" for place in found.places] or [str(index)]
    _check_count(len(readings) or len(errors))
    if errors and not (partial and readings):
        raise in_batch(errors)
    return Sent(readings, is_list=True, refused=errors, places=places)


def in_batch(errors: Sequence[FieldError], but: str = "nothing") -> AemosError:
    """What refuses a batch, as a whole unless there is a rest."""
    return AemosError(Kind.INVALID, f"{len(errors)} mistakes; {but} of the batch was stored", errors=errors)


def _located(place: str, error: AemosError) -> Iterator[FieldError]:
    for mistake in error.errors or (FieldError("", error.detail),):
        yield FieldError(f"{place}.{mistake.loc}".rstrip("."), mistake.message)


def _check_count(count: int) -> None:
    if not 0 < count <= MOST_READINGS:
        kind = Kind.TOO_LARGE if count else Kind.INVALID
        raise AemosError(kind, f"a batch has 1 to {MOST_READINGS} readings", reason="batch_size")


def _reading(body: _Body, now: int) -> Reading:
    at, arrived = now, False
    if body.recievedAt is not None:
        at = _parsed_time("recievedAt", body.recievedAt, now)
    elif body.receivedAt is not None:
        at = _parsed_time("receivedAt", body.receivedAt, now)
    else:
        arrived = True
    return Reading(
        variable_name=body.variableName,
        value=_value(body.value, "value"),
        received_at_ms=at,
        sensor_uuid=body.sensorUuid,
        message_id=body.messageId,
        at_arrival=arrived,
    )


def _value(raw: msgspec.Raw, loc: str) -> bytes:
    value = bytes(raw)
    if len(value) > MAX_READING_BYTES:
        raise AemosError(Kind.TOO_LARGE, f"a reading has at most {MAX_READING_BYTES} bytes")
    if value[:1] in (b"[", b"{"):
        try:
            check_depth(msgspec.json.decode(value))
        except msgspec.ValidationError:
            raise invalid(loc, "a number in it is out of range", "out_of_range") from None
    return value


def _parsed_time(loc: str, text: str, now: int) -> int:
    try:
        at = parse_rfc3339(text)
    except (ValueError, OverflowError):
        raise invalid(loc, "must be an RFC 3339 time with its offset") from None
    return _checked_time(loc, at, now)


def _checked_time(loc: str, at: int, now: int) -> int:
    if not EARLIEST_MS <= at <= now + MOST_AHEAD_MS:
        raise invalid(loc, "must be after 2000-01-01 and at most 5 minutes ahead")
    return at


def _refuse(message: str) -> NoReturn:
    """msgspec's words, such as "Expected `str`, got `int` - at `$.variableName`", as a located error."""
    complaint, _, path = message.partition(" - at `$")
    loc = path.rstrip("`").lstrip(".")
    if not loc and (field := _FIELD.search(complaint)):
        loc = field[1]
    raise invalid(loc or "body", complaint.replace("`", ""))
