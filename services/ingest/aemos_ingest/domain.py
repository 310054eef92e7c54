"""Values and their types, and what ingest knows of who sends them. Pure."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec
from aemos_core.errors import AemosError, FieldError, Kind, invalid, malformed

TYPES = ("number", "text", "boolean", "json")
MOST_VARIABLES = 1_000
"""Of one sensor, that readings may make."""
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_EXACT = 2**53
"""Greatest integer up to which a double keeps every one (IEEE 754)."""
_MOST_DIGITS = len(str(-_EXACT))
MOST_NAME = 200
"""Characters of a variable's name."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of a device's sensor. What the device sends is judged in its `partition`."""

    telemetry_data_id: int
    name: str
    type: str
    sensor_id: int
    sensor_uuid: str
    device_id: int
    device_uuid: str
    organization_id: int
    partition: int


NO_VARIABLE = Variable(0, "", "", 0, "", 0, "", 0, 0)


@dataclass(frozen=True, slots=True)
class Sensor:
    """A sensor and its variables by name."""

    id: int
    uuid: str
    variables: dict[str, Variable] = field(default_factory=dict)


SourceKey: TypeAlias = int | tuple[int, str]
"""Who sends: a token's id; or, for what rules derived, an organization and a sensor's uuid."""


@dataclass(frozen=True, slots=True)
class Source:
    """What one token may write to. `sensors` is in order of id; `bound` is the token's own sensor, if it has one."""

    organization_id: int
    device_id: int
    sensors: dict[str, Sensor]
    bound: str
    creates_variables: bool = True
    first: Sensor | None = None
    expires_at_ms: float = math.inf

    def sensor(self, uuid: str) -> Sensor:
        """The sensor a reading is for: the named one, the token's own, or the device's first."""
        if self.bound:
            if uuid and uuid != self.bound:
                raise invalid("sensorUuid", "is not the sensor of this token", "unknown_sensor")
            uuid = self.bound
        found = self.sensors.get(uuid) if uuid else self.first
        if found is None:
            raise invalid("sensorUuid", "is no sensor of this device", "unknown_sensor")
        return found


class UnknownVariable(AemosError):
    """A reading of a variable that its sensor does not have; `type` is what its value would make it."""

    def __init__(self, source: Source, sensor: Sensor, name: str, variable_type: str) -> None:
        mistake = FieldError("variableName", "the sensor has no such variable")
        super().__init__(Kind.INVALID, mistake.message, reason="unknown_variable", errors=[mistake])
        self.source = source
        self.sensor = sensor
        self.name = name
        self.type = variable_type

    @property
    def may_be_made(self) -> bool:
        """Whether the variable may be made now. MariaDB takes "a" and "a " for the same name."""
        has_room = self.source.creates_variables and len(self.sensor.variables) < MOST_VARIABLES
        return has_room and self.name == self.name.strip() and 0 < len(self.name) <= MOST_NAME


def typed_value(value: bytes, variable_type: str) -> tuple[str, float | None]:
    """The text to store and, for a number variable, its number. `value` is JSON text; INVALID for a wrong type."""
    if variable_type == "json":
        return _json(value), None
    first = value[:1]
    text = msgspec.json.decode(value) if first == b'"' else value.decode()
    if variable_type == "number":
        return text, _number(text)
    is_text = first == b'"'
    if variable_type == "text" and not is_text:
        raise invalid("value", "the variable is text", "wrong_type")
    if variable_type == "boolean" and text not in ("true", "false"):
        raise invalid("value", "the variable is boolean", "wrong_type")
    return text, None


def _json(value: bytes) -> str:
    try:
        msgspec.json.decode(value)
    except msgspec.ValidationError:
        raise invalid("value", "a number in it is out of range", "out_of_range") from None
    return value.decode()


def _number(text: str) -> float:
    if not _JSON_NUMBER.fullmatch(text):
        raise invalid("value", "the variable is a number", "wrong_type")
    number = float(text)
    if not math.isfinite(number) or (abs(number) >= _EXACT and text.lstrip("-").isdigit() and not _is_exact(text)):
        raise invalid("value", "the number is too large to be kept exactly", "out_of_range")
    return number


def _is_exact(digits: str) -> bool:
    """Whether a whole number is at most `_EXACT`, which the double nearest to it does not say."""
    return len(digits) <= _MOST_DIGITS and abs(int(digits)) <= _EXACT


def check_variable_name(loc: str, name: str) -> str:
    """As `check_name`, and nothing at its ends that MariaDB overlooks."""
    if name != name.strip():
        raise invalid(loc, "must not begin or end with a space")
    return check_name(loc, name)


def check_name(loc: str, name: str, most: int = MOST_NAME) -> str:
    """The name, when it has 1 to `most` characters and no NUL."""
    if not 0 < len(name) <= most:
        raise invalid(loc, f"must have 1 to {most} characters")
    if "\0" in name:
        raise malformed("the character NUL is not text")
    return name


def type_of(value: bytes) -> str:
    """The type of a variable that this JSON value makes; numeric text makes a number, as devices send both. INVALID
    for null, which says nothing, and for a number that cannot be kept."""
    first = value[:1]
    if first in (b"[", b"{"):
        return "json"
    if first in (b"t", b"f"):
        return "boolean"
    if first == b"n":
        raise invalid("value", "null does not say of which type the new variable is", "wrong_type")
    try:
        typed_value(value, "number")
    except AemosError:
        if first == b'"':
            return "text"
        raise
    return "number"


_UUID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def check_uuid(loc: str, uuid: str) -> str:
    """The uuid, when it may stand in topics and paths."""
    if not _UUID.fullmatch(uuid):
        raise invalid(loc, "must be 1 to 64 of A-Z a-z 0-9 _ . -")
    return uuid
