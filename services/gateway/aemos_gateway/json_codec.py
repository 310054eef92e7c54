"""Messages of the contract as the REST JSON: camelCase, ids as numbers, times in RFC 3339 with milliseconds.

Protobuf's own JSON writes 64-bit integers as text and cannot say which field is wrong; this one does what
`/openapi.json` says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from aemos_core.errors import FieldError, malformed
from aemos_core.times import parse_rfc3339, rfc3339, to_timestamp
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from aemos_gateway.readings import MAX_DEPTH

_F = FieldDescriptor
# Of the two implementations of protobuf the stubs name both, and neither has the other's type.
Field = Any
Shape = Any
MOST = 2**53
"""What every JSON reader keeps exactly (RFC 8259, 6)."""
BOOLEANS = {"true": True, "false": False}
"""Of a parameter, however it is spelt: Python's clients send "True"."""


def to_json(message: Message) -> Any:
    """A message as JSON values; every field is there, but an optional or message field without a value is left out."""
    if isinstance(message, Timestamp):
        return rfc3339(message.ToMilliseconds())
    if isinstance(message, (Struct, Value)):
        return json_format.MessageToDict(message)
    return {
        field.json_name: _value_to_json(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def _value_to_json(field: Field, value: Any) -> Any:
    if is_map(field):
        return dict(value)
    if not field.is_repeated:
        return to_json(value) if field.message_type else value
    return [to_json(item) for item in value] if field.message_type else list(value)


def is_map(field: Field) -> bool:
    """Whether the field is a map, which is a repeated message on the wire."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def from_json(message: Message, values: Any, loc: str = "") -> list[FieldError]:
    """Fills a message from JSON values; returns every mistake with its place, and fills nothing if there is one.

    MALFORMED when they are nested deeper than protobuf takes."""
    if not isinstance(values, Mapping):
        return [FieldError(loc or "body", "must be an object")]
    fields = message.DESCRIPTOR.fields_by_camelcase_name
    read, errors = {}, []
    for name, value in values.items():
        where = f"{loc}.{name}" if loc else str(name)
        if name not in fields:
            errors.append(FieldError(where, "is not a field"))
        elif value is not None:
            read[fields[name].name] = _read(fields[name], value, where, errors)
    if errors:
        return errors
    try:
        message.MergeFrom(type(message)(**read))
    except DecodeError:  # on the wire, messages within each other are at most 100
        raise malformed("nested too deep") from None
    return []


def _read(field: Field, value: Any, loc: str, errors: list[FieldError]) -> Any:
    """What protobuf takes for a field; None after a mistake, which is added to `errors`."""
    if not field.is_repeated:
        return _read_one(field, value, loc, errors)
    if is_map(field) and isinstance(value, dict):
        of_value = field.message_type.fields_by_name["value"]
        return {key: _read_one(of_value, item, f"{loc}.{key}", errors) for key, item in value.items()}
    if not is_map(field) and isinstance(value, list):
        return [_read_one(field, item, f"{loc}.{index}", errors) for index, item in enumerate(value)]
    errors.append(FieldError(loc, "must be an object" if is_map(field) else "must be a list"))
    return None


def _read_one(field: Field, value: Any, loc: str, errors: list[FieldError]) -> Any:
    known = type_of(field)
    if known is None:
        message = GetMessageClass(field.message_type)()
        errors += from_json(message, value, loc)
        return message
    try:
        return known.read(value)
    except ValueError as mistake:
        errors.append(FieldError(loc, str(mistake)))
        return None


def _only(complaint: str, *types: type, most: float = MOST) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) not in types or abs(value) > most:
            raise ValueError(complaint)
        return value

    return read


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text")
    if "\0" in value:
        raise ValueError("must not contain the character NUL")
    return value


def _time(value: Any) -> Timestamp:
    try:
        time = to_timestamp(parse_rfc3339(str(value)))
        time.ToMilliseconds()  # ValueError when its offset moves it out of the years 1 to 9999
        return time
    except (ValueError, OverflowError):
        raise ValueError("must be an RFC 3339 time with its offset") from None


def _object(value: Any) -> Struct:
    if not isinstance(value, dict):
        raise ValueError("must be an object")
    return _anything(value).struct_value


def _anything(value: Any) -> Value:
    try:
        return json_format.ParseDict(value, Value(), max_recursion_depth=4 * MAX_DEPTH)
    except (OverflowError, json_format.ParseError):
        raise ValueError("a number in it is too large") from None


class FieldType(NamedTuple):
    """How a value of a field is read (ValueError says what it must be), and its JSON Schema."""

    read: Callable[[Any], Any]
    schema: dict[str, Any]


_TYPES: dict[int | str, FieldType] = {
    _F.CPPTYPE_INT32: FieldType(
        _only("must be an integer", int, most=2**31 - 1), {"type": "integer", "format": "int32"}
    ),
    _F.CPPTYPE_INT64: FieldType(_only("must be an integer", int), {"type": "integer", "format": "int64"}),
    _F.CPPTYPE_DOUBLE: FieldType(_only("must be a number", int, float, most=sys.float_info.max), {"type": "number"}),
    _F.CPPTYPE_BOOL: FieldType(_only("must be true or false", bool), {"type": "boolean"}),
    _F.CPPTYPE_STRING: FieldType(_text, {"type": "string"}),
    "google.protobuf.Timestamp": FieldType(_time, {"type": "string", "format": "date-time"}),
    "google.protobuf.Struct": FieldType(_object, {"type": "object"}),
    "google.protobuf.Value": FieldType(_anything, {}),
}


def type_of(field: Field) -> FieldType | None:
    """The type of a field, or of each of its items; None for a message that has fields."""
    return _TYPES.get(field.message_type.full_name if field.message_type else field.cpp_type)


def from_parameters(descriptor: Shape, parameters: Mapping[str, list[str]]) -> tuple[dict[str, Any], list[FieldError]]:
    """Path and query parameters as JSON values of the types that their fields have; of several for one the last."""
    values: dict[str, Any] = {}
    errors: list[FieldError] = []
    for name, texts in parameters.items():
        field = descriptor.fields_by_camelcase_name.get(name) or descriptor.fields_by_name.get(name)
        if field is None:
            errors.append(FieldError(name, "is not a parameter"))
            continue
        parsed = [_parameter(field, text) for text in texts]
        values[field.camelcase_name] = parsed if field.is_repeated else parsed[-1]
    return values, errors


def _parameter(field: Field, text: str) -> Any:
    """The value that the text says; the text itself, which is a mistake then, when it says none of its field's type."""
    if field.cpp_type == _F.CPPTYPE_BOOL:
        return BOOLEANS.get(text.lower(), text)
    is_integer = field.cpp_type in (_F.CPPTYPE_INT32, _F.CPPTYPE_INT64)
    return int(text) if is_integer and text.isascii() and text.isdigit() and len(text) < 17 else text
