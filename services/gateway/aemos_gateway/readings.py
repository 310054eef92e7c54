"""A reading as a device sends it: one decoder for every protocol. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec
from aemos_core.errors import AemosError, Kind, invalid, malformed
from aemos_core.times import now_ms, parse_rfc3339, rfc3339

MAX_READING_BYTES = 64 * 1024
MAX_DEPTH = 64
EARLIEST_MS = parse_rfc3339("2000-01-01T00:00:00Z")
MOST_AHEAD_MS = 5 * 60 * 1000
_MAX_NAME = 200
_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_PATH = re.compile(r"^(?P<message>.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.DOTALL)
_FIELD = re.compile(r"field `([^`]*)`")


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    variableName: str  # noqa: N815  the product's own spelling
    value: msgspec.Raw
    recievedAt: str | None = None  # noqa: N815
    receivedAt: str | None = None  # noqa: N815
    sensorUuid: str = ""  # noqa: N815


_decoder = msgspec.json.Decoder(_Body)


@dataclass(frozen=True, slots=True)
class Reading:
    """A reading that is well formed; only ingest knows whether its variable takes the value."""

    variable_name: str
    value: bytes
    """The value's JSON text, as it was sent."""
    received_at_ms: int
    sensor_uuid: str


@dataclass(frozen=True, slots=True)
class Stored:
    """A reading that is durable."""

    id: int
    telemetry_data_id: int
    sensor_uuid: str
    reading: Reading

    def answer(self) -> bytes:
        """The JSON of a 201 and of a 2.01."""
        reading = self.reading
        return (
            b'{"data":{"id":%d,"value":%b,"variableName":%b,"telemetryDataId":%d,"sensorUuid":%b,"recievedAt":"%b"}}'
            % (
                self.id,
                reading.value,
                msgspec.json.encode(reading.variable_name),
                self.telemetry_data_id,
                msgspec.json.encode(self.sensor_uuid),
                rfc3339(reading.received_at_ms).encode(),
            )
        )


def decode_reading(payload: bytes) -> Reading:
    """One reading from its JSON. MALFORMED when the bytes cannot be parsed, INVALID naming the field otherwise.

    Of a repeated key the last one counts, on every protocol.
    """
    if len(payload) > MAX_READING_BYTES:
        raise AemosError(Kind.TOO_LARGE, f"a reading has at most {MAX_READING_BYTES} bytes")
    body = _parse(payload)
    if not 0 < len(body.variableName) <= _MAX_NAME:
        raise invalid("variableName", f"must have 1 to {_MAX_NAME} characters")
    value = bytes(body.value)
    if value[:1] in (b"[", b"{") and _depth(msgspec.json.decode(value)) > MAX_DEPTH:
        raise malformed(f"nested more than {MAX_DEPTH} levels deep")
    return Reading(body.variableName, value, _received_at(body), body.sensorUuid)


def _parse(payload: bytes) -> _Body:
    try:
        check_text(payload)
        return _decoder.decode(payload)
    except UnicodeDecodeError:
        raise malformed("the body is not UTF-8") from None
    except msgspec.ValidationError as error:
        _refuse(str(error))
    except (msgspec.DecodeError, RecursionError) as error:
        detail = "nested too deep" if isinstance(error, RecursionError) else "the body is not JSON"
        raise malformed(detail) from None


def check_text(payload: bytes) -> None:
    """UnicodeDecodeError unless it is UTF-8; MALFORMED when a JSON string in it contains NUL."""
    if not payload.isascii():
        payload.decode()
    if b"\\u0000" in payload and _ESCAPED_NUL.search(payload):
        raise malformed("the character NUL is not text")


def _refuse(message: str) -> NoReturn:
    """msgspec's words, such as "Expected `str`, got `int` - at `$.variableName`", as a located error."""
    match = _PATH.match(message)
    assert match is not None  # the pattern matches every text
    loc = (match["path"] or "").lstrip(".")
    if not loc and (field := _FIELD.search(match["message"])):
        loc = field[1]
    raise invalid(loc or "body", match["message"].replace("`", ""))


def _received_at(body: _Body) -> int:
    now = now_ms()
    loc = "recievedAt" if body.recievedAt is not None else "receivedAt"
    text = body.recievedAt if body.recievedAt is not None else body.receivedAt
    if text is None:
        return now
    try:
        at = parse_rfc3339(text)
    except (ValueError, OverflowError):
        raise invalid(loc, "must be an RFC 3339 time with its offset") from None
    if not EARLIEST_MS <= at <= now + MOST_AHEAD_MS:
        raise invalid(loc, "must be after 2000-01-01 and at most 5 minutes ahead")
    return at


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += 1
        if deepest > MAX_DEPTH + 1:
            break
        level = [child for item in level for child in _children(item) if isinstance(child, (list, dict))]
    return deepest


def _children(item: Any) -> Any:
    return item.values() if isinstance(item, dict) else item
