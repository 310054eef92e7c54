"""Messages of the contract as the REST JSON: camelCase, ids as numbers, times in RFC 3339 with milliseconds.

Protobuf's own JSON writes 64-bit integers as text and cannot say which field is wrong; this one does what
`/openapi.json` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aemos_core.errors import AemosError, FieldError, Kind
from aemos_core.times import parse_rfc3339, rfc3339
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

_F = FieldDescriptor
# Of the two implementations of protobuf the stubs name both, and neither has the other's type.
Field = Any
Shape = Any
_INTEGERS = {_F.CPPTYPE_INT32, _F.CPPTYPE_INT64, _F.CPPTYPE_UINT32, _F.CPPTYPE_UINT64}
_NUMBERS = {_F.CPPTYPE_DOUBLE, _F.CPPTYPE_FLOAT}
MOST = 2**53
"""What every JSON reader keeps exactly (RFC 8259, 6)."""


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
    if field.is_repeated:
        if is_map(field):
            return dict(value)
        return [to_json(item) if field.message_type else item for item in value]
    return to_json(value) if field.message_type else value


def is_map(field: Field) -> bool:
    """Whether the field is a map, which is a repeated message on the wire."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def from_json(message: Message, values: Any, loc: str = "") -> list[FieldError]:
    """Fills a message from JSON values; returns every mistake with its place."""
    if not isinstance(values, Mapping):
        return [FieldError(loc or "body", "must be an object")]
    fields = message.DESCRIPTOR.fields_by_camelcase_name
    errors = []
    for name, value in values.items():
        where = f"{loc}.{name}" if loc else str(name)
        if name not in fields:
            errors.append(FieldError(where, "is not a field"))
        elif value is not None:
            errors += _fill(message, fields[name], value, where)
    return errors


def _fill(message: Message, field: Field, value: Any, loc: str) -> list[FieldError]:
    if field.is_repeated:
        fill = _fill_map if is_map(field) else _fill_list
        return fill(getattr(message, field.name), field, value, loc)
    if field.message_type:
        child = getattr(message, field.name)
        child.SetInParent()
        return _fill_message(child, value, loc)
    mistake = _mistake(field, value)
    if not mistake:
        setattr(message, field.name, value)
    return [FieldError(loc, mistake)] if mistake else []


def _fill_list(items: Any, field: Field, values: Any, loc: str) -> list[FieldError]:
    if not isinstance(values, list):
        return [FieldError(loc, "must be a list")]
    errors = []
    for index, value in enumerate(values):
        where = f"{loc}.{index}"
        if field.message_type:
            errors += _fill_message(items.add(), value, where)
        elif mistake := _mistake(field, value):
            errors.append(FieldError(where, mistake))
        else:
            items.append(value)
    return errors


def _fill_map(items: Any, field: Field, values: Any, loc: str) -> list[FieldError]:
    """A map from text to scalars, which is all that the contract has."""
    if not isinstance(values, dict):
        return [FieldError(loc, "must be an object")]
    of_value = field.message_type.fields_by_name["value"]
    errors = []
    for key, value in values.items():
        if mistake := _text(key) or _mistake(of_value, value):
            errors.append(FieldError(f"{loc}.{key}", mistake))
        else:
            items[key] = value
    return errors


def _fill_message(message: Message, value: Any, loc: str) -> list[FieldError]:
    if isinstance(message, Timestamp):
        try:
            message.FromMilliseconds(parse_rfc3339(value))
        except (TypeError, ValueError, OverflowError):
            return [FieldError(loc, "must be an RFC 3339 time with its offset")]
        return []
    if isinstance(message, Struct):
        return _fill_struct(message, value, loc)
    if isinstance(message, Value):
        json_format.ParseDict(value, message)
        return []
    return from_json(message, value, loc)


def _fill_struct(message: Struct, value: Any, loc: str) -> list[FieldError]:
    if not isinstance(value, dict):
        return [FieldError(loc, "must be an object")]
    try:
        message.update(value)
    except OverflowError:
        return [FieldError(loc, "a number in it is too large")]
    return []


def _mistake(field: Field, value: Any) -> str:
    return _CHECKS[field.cpp_type](value)


def _integer(value: Any) -> str:
    return "" if type(value) is int and abs(value) <= MOST else "must be an integer"


def _number(value: Any) -> str:
    return "" if type(value) in (int, float) else "must be a number"


def _boolean(value: Any) -> str:
    return "" if isinstance(value, bool) else "must be true or false"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        return "must be text"
    return "must not contain the character NUL" if "\0" in value else ""


_CHECKS: dict[int, Callable[[Any], str]] = {
    **dict.fromkeys(_INTEGERS, _integer),
    **dict.fromkeys(_NUMBERS, _number),
    _F.CPPTYPE_BOOL: _boolean,
    _F.CPPTYPE_STRING: _text,
}


def from_parameters(descriptor: Shape, parameters: Mapping[str, list[str]]) -> tuple[dict[str, Any], list[FieldError]]:
    """Path and query parameters as JSON values of the types that their fields have; of several for one the last."""
    values: dict[str, Any] = {}
    errors = []
    for name, texts in parameters.items():
        field = descriptor.fields_by_camelcase_name.get(name) or descriptor.fields_by_name.get(name)
        if field is None:
            errors.append(FieldError(name, "is not a parameter"))
            continue
        parsed = [_parameter(field, text) for text in texts]
        if None in parsed:
            errors.append(FieldError(name, "must be an integer"))
        else:
            values[field.camelcase_name] = parsed if field.is_repeated else parsed[-1]
    return values, errors


def _parameter(field: Field, text: str) -> Any:
    if field.cpp_type not in _INTEGERS:
        return text
    return int(text) if text.isascii() and text.isdigit() and len(text) < 17 else None


def refuse(errors: list[FieldError]) -> None:
    """Raises INVALID when there is a mistake."""
    if errors:
        detail = "; ".join(f"{error.loc}: {error.message}" for error in errors)
        raise AemosError(Kind.INVALID, detail, errors=errors)
